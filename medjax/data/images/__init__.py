"""Image files: checking their headers, reading their pixels, storing them."""
