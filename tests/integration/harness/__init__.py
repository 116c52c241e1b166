"""What the integration tests, the demo and the benchmark share: no pytest in here.

It calls the kernel by itself and uses nothing of the product, so that it can judge it.
"""
