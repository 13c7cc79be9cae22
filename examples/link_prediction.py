"""`python -m examples.link_prediction DATASET --epochs 10`: learns which nodes of a dataset are linked.

A tenth of the edges is held out for validation and a tenth for test. GraphSAGE learns to tell the others from pairs with a random
node; while it does, it never passes messages along the edges it is asked about, nor along those held out. Then all nodes get
embeddings, layer by layer over the graph without held-out edges, and the program prints how well these tell held-out edges from
random pairs. The edges are held in memory, 16 bytes each; features are read from the dataset.
"""

import argparse
from pathlib import Path

import numpy as np

from ginex_jax import ArrayFeatures, ModelConfig, SamplerConfig, build_model, infer, open_dataset
from ginex_jax.pipeline.memory_loader import MemoryLoader
from ginex_jax.sampling.edge_set import edge_set
from ginex_jax.sampling.edge_split import edges_of, split_edges
from ginex_jax.sampling.links import LinkConfig
from ginex_jax.sampling.reduced_graph import graph_without
from ginex_jax.sampling.samplers import LinkSampler
from ginex_jax.train.config import TrainConfig
from ginex_jax.train.inputs import NodeArrays
from ginex_jax.train.link_evaluation import evaluate_embeddings, evaluation_links
from ginex_jax.train.loop import fit


def main(arguments: list[str] | None = None) -> None:
    """Prints MRR and AUC on the edges of validation and test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--directed", action="store_true", help="an edge says nothing of its reverse")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=512, help="edges a step")
    parser.add_argument("--negatives", type=int, default=1, help="random nodes an edge, in training")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    dataset = open_dataset(options.dataset)
    graph, features, undirected = dataset.load_graph(), dataset.features, not options.directed
    assert features is not None, "the dataset has no features"
    split = split_edges(
        edges_of(graph), valid_fraction=0.1, test_fraction=0.1, seed=options.seed, undirected=undirected
    )
    held_out = edge_set(np.concatenate([split.valid, split.test]), graph.num_nodes, both_directions=undirected)
    known = graph_without(graph, held_out)

    sampling = SamplerConfig(fanouts=(10, 10), batch_size=options.batch_size, seed=options.seed)
    config = LinkConfig(sampling=sampling, num_negatives=options.negatives, undirected=undirected)
    loader = MemoryLoader.of(LinkSampler(known, split.train, config), features)
    model = build_model(ModelConfig(hidden=options.hidden, num_layers=2, num_outputs=options.hidden, dropout=0.0))
    task = "links" if undirected else "directed-links"
    training = TrainConfig(task=task, learning_rate=0.01, epochs=options.epochs, seed=options.seed)
    nodes = NodeArrays(None, nodes_per_link=config.nodes_per_link)
    result = fit(model, loader, nodes, training, num_features=features.shape[1])

    outputs = np.empty((graph.num_nodes, options.hidden), np.float32)
    for block in infer(model, result.params, known, features, memory_bytes=1 << 30):
        outputs[block.node_ids] = block.outputs
    for name, edges in (("valid", split.valid), ("test", split.test)):
        links = evaluation_links(edges, num_negatives=50, num_nodes=graph.num_nodes, seed=options.seed)
        quality = evaluate_embeddings(ArrayFeatures(outputs), links, task)
        print(f"{name}: {quality.num_links} edges, MRR {quality.mrr:.4f} among 51, AUC {quality.auc:.4f}")


if __name__ == "__main__":
    main()
