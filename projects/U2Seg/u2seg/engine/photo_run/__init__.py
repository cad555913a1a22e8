"""From photos to a model without a word of configuration: what is found, chosen, estimated and shown along the way."""
