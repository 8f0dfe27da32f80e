"""What differs between families of mixture-of-experts models. Reads no tensors.

Mixtral's settings, tensors and shapes stand here and nowhere else.
"""
