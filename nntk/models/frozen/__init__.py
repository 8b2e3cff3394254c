"""Parts of a model that no displacement reaches: half precision beside wider dtypes, and results that are kept."""
