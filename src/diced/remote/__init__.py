"""A client of any DVID server, ours or Janelia's, with the API of a store at a path.

`address` says where, `http` how a request is sent and sent again, `failures` what a refusal means,
`facts` what the server's JSON says; `store`, `repo`, `array`, `files`, `roi`, `tiles` and `graph`
are the faces of it, and `voxels` moves boxes of voxels.
"""
