"""The tools that trtq is measured against, each as its documentation says to use it.

One file a tool, run in the tool's own environment (`make bench-peers`) as `python -m peers.NAME`, with
`calibrate MODEL DATA METHOD` or `quantize MODEL DATA METHOD OUTPUT`.
"""
