"""y = x W^T straight from packed weights, in code that is compiled for this machine."""
