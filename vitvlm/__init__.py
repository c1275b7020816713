"""vitvlm: train, ablate, evaluate and look inside vision transformers and vision-language models, in JAX."""
