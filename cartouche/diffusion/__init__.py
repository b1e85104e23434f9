"""Diffusion as plain arithmetic: ladders, predictions, samplers, guidance, noise.

It knows no network: a denoiser is any callable. Everything here runs on numpy arrays and on torch tensors
alike, and imports neither torch nor a net.
"""
