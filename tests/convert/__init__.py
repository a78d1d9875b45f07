"""trinn.convert, trinn.patched, fused layers and the backend of torch.compile."""
