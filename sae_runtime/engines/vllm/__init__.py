"""Reading inside vLLM's worker: a KV connector that encodes prompts where their activations already are.

``options``   what vLLM is started with.
``requests``  what a request says to be read.
``connector`` the two halves of the connector: scheduler (which prompts are complete) and worker (encode, send).
``scheduler`` vLLM's scheduler without the drafts that hidden-state extraction would have verified in vain.
``channel``   the way from the worker to the API server, open before the first token is sampled.
"""
