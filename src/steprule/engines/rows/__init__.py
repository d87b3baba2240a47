"""The rows engine: only the rows that a sparse gradient has."""
