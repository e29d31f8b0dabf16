"""Other people's files, to and from a model folder."""
