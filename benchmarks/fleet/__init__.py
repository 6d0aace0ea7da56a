"""A fleet of replicas behind a load balancer, simulated event by event: ``python -m benchmarks.fleet``.

``costs``      what a step, a request and a reading take; fitted to docs/performance.md and measured here.
``engine``     one replica's engine: continuous batching, chunked prefill, prefix cache.
``traffic``    chats of several turns: how long, how often.
``replica``    a server: its event loop, the thread that reads, its engine.
``fleet``      the load balancer, failures, rolling updates.
``turns``      one turn of a chat on its way: plain, in one call, in two calls; deadlines, retries.
``clock``      the events.
``figures``    a run from start to end, its percentiles and tables.
``calibration``, ``validation``  where the costs come from, and how far off the simulation is.
"""
