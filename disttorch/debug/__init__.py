"""Looking into the engine: drawings of the graph of a computation."""

from .graph import draw_graph, graph_of, to_dot

__all__ = ["draw_graph", "graph_of", "to_dot"]
