"""Networks and optima over the noise levels: losses, gaps, information, neighbours."""
