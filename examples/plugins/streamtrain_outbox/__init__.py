"""A source, a codec, a model and an exporter for streamtrain, as third parties write them."""
