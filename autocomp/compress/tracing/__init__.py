"""What tracing finds in a graph: coupled channels, layers, fused kernels."""
