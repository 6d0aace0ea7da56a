"""A fleet of replicas behind a load balancer, simulated event by event: ``python -m benchmarks.fleet``.

``costs``      what a step, a request and a reading take; fitted to docs/performance.md and measured here.
``engine``     one replica's engine: continuous batching, chunked prefill, prefix cache.
``traffic``    chats of several turns: how long, how often.
``replica``    a server: its event loop, the thread that reads, its engine.
``fleet``      the load balancer, failures, rolling updates.
``turns``      one turn of a chat on its way: plain, in one call, in two calls; deadlines, retries.
``simulation`` the clock, and a run from start to end.
``figures``    percentiles and tables.
"""
