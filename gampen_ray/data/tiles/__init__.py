"""Coadd tiles of a survey: their index, the tile of each source, and cutouts from their pixels."""
