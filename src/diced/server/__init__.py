"""The HTTP server: DVID's API, and a page to look at, over one store.

`routes` says which requests there are, `call` and `answer` what a handler sees and gives, `site`
what all requests share, `app` how bytes come and go. A data type is a `datatype.DataType`.
"""
