"""TensorFlow Lite files: the bytes of one int8 network, written and read with the published schema, no TensorFlow."""
