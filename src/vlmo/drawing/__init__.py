"""Pictures for people: data URIs, attention as a heat map, sheets of pictures."""
