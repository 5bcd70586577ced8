"""One whole job: inputs, checks, preflight, pipeline, results."""
