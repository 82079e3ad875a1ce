"""Posteriors over rows that no tensor holds: read in blocks, merged exactly.

``store`` is what the ops call. It takes a ``place``, where rows of this process are, and an
``exchange``, what other processes add. ``plan`` cuts the rows into blocks; ``ahead`` reads them, or
``direct`` lets the threads that compute read; ``sharing`` gives a pass to all who wait. ``exact``
and ``merged`` make results of the blocks.
"""
