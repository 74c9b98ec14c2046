"""The demonstration: made-up volumes, and the tour of diced that uses them."""
