"""The density model: PixelCNN++, its conditionals, scan, likelihoods and samples."""
