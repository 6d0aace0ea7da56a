"""The offline build: corpus -> harvest -> train -> describe -> concepts -> publish. Nothing here is imported to serve."""
