"""A language model as judge: the papers' prompts, any OpenAI-compatible endpoint, a cache that outlives the run."""
