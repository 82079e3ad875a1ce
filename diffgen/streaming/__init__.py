"""Posteriors over rows that no tensor holds: read in blocks, merged exactly.

``store`` is what the ops call. It takes a ``place``, where rows of this process are, and an
``exchange``, what other processes add; ``plan`` cuts the rows into blocks and ``ahead`` reads them.
``exact`` and ``merged`` make the moments of the blocks, ``products`` the covariance products.
"""
