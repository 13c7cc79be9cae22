import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ginex_jax.features import ArrayFeatures
from ginex_jax.inference.layerwise import infer
from ginex_jax.models.config import ModelConfig
from ginex_jax.models.construction import build_model
from ginex_jax.models.initialization import initial_parameters
from ginex_jax.pipeline.memory_loader import MemoryLoader
from ginex_jax.sampling.edge_set import edge_set
from ginex_jax.sampling.links import uniform_negatives
from ginex_jax.sampling.reduced_graph import graph_without
from ginex_jax.sampling.samplers import LinkSampler
from ginex_jax.train.config import TrainConfig
from ginex_jax.train.evaluation import batch_evaluator
from ginex_jax.train.inputs import NodeArrays, check_labels, link_targets, step_inputs
from ginex_jax.train.link_evaluation import evaluate_batches, evaluate_embeddings, evaluation_links
from ginex_jax.train.link_metrics import area_under_curve, mean_reciprocal_rank
from ginex_jax.train.link_scores import link_scores
from ginex_jax.train.loop import fit
from ginex_jax.train.metrics import tally
from tests.ginex_jax import oracles_links as oracles
from tests.ginex_jax.small_links import NUM_NODES, WIDTH, communities, features, held_out, link_config, split

few = st.integers(-2, 2)  # so that there are ties


@given(st.integers(1, 6), st.integers(1, 5), st.data())
def test_metrics_equal_the_oracles(num_links: int, num_negatives: int, data: st.DataObject) -> None:
    scores = data.draw(
        st.lists(few, min_size=num_links * (1 + num_negatives), max_size=num_links * (1 + num_negatives))
    )
    array = np.array(scores, np.float32).reshape(num_links, -1)
    positive, negative = array[:, 0], array[:, 1:]
    assert mean_reciprocal_rank(positive, negative) == pytest.approx(oracles.mean_reciprocal_rank(positive, negative))
    assert area_under_curve(positive, negative) == pytest.approx(oracles.area_under_curve(positive, negative))


def test_a_constant_score_earns_nothing() -> None:
    assert area_under_curve(np.ones(5), np.ones((5, 9))) == 0.5
    assert mean_reciprocal_rank(np.ones(5), np.ones((5, 9))) == pytest.approx(1 / 5.5)
    with pytest.raises(ValueError, match="some are NaN"):
        area_under_curve(np.array([np.nan]), np.ones(1))
    with pytest.raises(ValueError, match="there should be scores"):
        mean_reciprocal_rank(np.ones(0), np.ones((0, 3)))


@pytest.mark.parametrize("task", ["links", "directed-links"])
def test_scores_and_loss_follow_the_formula(task: str) -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((4, 5, 6)).astype(np.float32)
    targets = link_targets(np.repeat([True, True, True, False], 5), 5)
    expected, losses, hits, errors = np.zeros((4, 4)), [], 0, 0
    for link in range(4):
        for pair in range(4):
            source, target = embeddings[link, 0].astype(float), embeddings[link, 1 + pair].astype(float)
            score = source @ target if task == "links" else source[:3] @ target[3:]
            expected[link, pair] = score
            if link < 3:
                losses.append(np.log1p(np.exp(-score if pair == 0 else score)))
                hits += 2 * (expected[link, 0] > score) * (pair > 0)
                errors += 2 * (expected[link, 0] < score) * (pair > 0)
    np.testing.assert_allclose(link_scores(embeddings, task), expected, rtol=1e-5, atol=1e-6)
    found = tally(jax.numpy.asarray(embeddings.reshape(20, 6)), targets, task)
    assert float(found.loss_sum) == pytest.approx(sum(losses), rel=1e-5)
    assert (int(found.num_targets), int(found.hits), int(found.errors)) == (12, hits, errors)
    same = np.ones((4, 5, 6), np.float32)
    assert tally(jax.numpy.asarray(same.reshape(20, 6)), targets, task).score == 0.5


def test_directed_scores_see_the_order_and_others_do_not() -> None:
    pair = np.random.default_rng(0).standard_normal((1, 2, 6)).astype(np.float32)
    assert link_scores(pair, "links") == link_scores(pair[:, ::-1], "links")
    assert link_scores(pair, "directed-links") != link_scores(pair[:, ::-1], "directed-links")
    with pytest.raises(ValueError, match="even number of outputs"):
        check_labels(NodeArrays(None, nodes_per_link=3), "directed-links", 5)
    with pytest.raises(ValueError, match="nodes_per_link should be"):
        link_targets(np.ones(10, np.bool_), 3)


def test_embeddings_are_scored_as_the_oracle_does() -> None:
    rng = np.random.default_rng(0)
    edges = rng.integers(0, 50, (2100, 2))
    links = evaluation_links(edges, num_negatives=3, num_nodes=50, seed=4)
    embeddings = rng.integers(-2, 3, (50, 3)).astype(np.float32)
    quality = evaluate_embeddings(ArrayFeatures(embeddings), links, "links")
    scores = np.einsum("lf,lpf->lp", embeddings[links.sources], embeddings[links.seed_nodes.reshape(-1, 5)[:, 1:]])
    assert quality.mrr == pytest.approx(oracles.mean_reciprocal_rank(scores[:, 0], scores[:, 1:]))
    assert quality.auc == pytest.approx(area_under_curve(scores[:, 0], scores[:, 1:]))
    assert quality.num_links == 2100
    some = evaluation_links(edges[:100], num_negatives=3, num_nodes=50, seed=4)
    np.testing.assert_array_equal(some.negatives, links.negatives[:100])
    known = edge_set(edges, 50)
    filtered = evaluation_links(edges, num_negatives=3, num_nodes=50, seed=4, avoid=known)
    assert known.contains(filtered.sources[:, None], filtered.negatives).mean() < 0.1


@pytest.mark.parametrize(("kind", "task"), [("gcn", "links"), ("sage", "directed-links")])
def test_links_of_communities_are_learnt(kind: str, task: str) -> None:
    """Held-out edges are told from random pairs, and better than the same model tells them before training."""
    graph = communities()
    model = build_model(ModelConfig(kind=kind, hidden=16, num_layers=2, num_outputs=16, dropout=0.0))
    nodes = NodeArrays(None, np.diff(graph_without(graph, held_out()).indptr), nodes_per_link=4)
    loader = MemoryLoader.of(LinkSampler(graph, split().train, link_config(), held_out=held_out()), features())
    test = MemoryLoader.of(LinkSampler(graph, split().test, link_config(), held_out=held_out()), features())
    config = TrainConfig(task=task, learning_rate=0.01, epochs=6)
    evaluate = batch_evaluator(model, test, nodes, task)
    result = fit(model, loader, nodes, config, num_features=WIDTH, evaluate=evaluate)
    links = evaluation_links(split().test, num_negatives=20, num_nodes=NUM_NODES, seed=0)
    outputs = infer(model, result.params, graph_without(graph, held_out()), features(), memory_bytes=1 << 28)
    exact = evaluate_embeddings(ArrayFeatures(np.concatenate([block.outputs for block in outputs])), links, task)
    quality = evaluate_batches(model, result.params, test, nodes, task)
    first = initial_parameters(model, WIDTH, jax.random.key(0))
    before = evaluate_batches(model, first, test, nodes, task)
    assert quality.num_links == len(split().test)
    assert exact.auc > 0.85 and exact.num_links == len(split().test)
    assert quality.auc > 0.85 and quality.auc > before.auc and quality.mrr > before.mrr
    assert result.best_score == pytest.approx(quality.auc, abs=0.05)


def test_nothing_depends_on_edges_that_are_hidden() -> None:
    """Seeds get the same outputs from a graph that never had the held-out edges and the batch's target edges."""
    graph, config = communities(), link_config(fanouts=(None, None))
    sampler = LinkSampler(graph, split().train, config, held_out=held_out())
    links = sampler.links(0, 3)
    hidden = edge_set(np.concatenate([links.edges, links.edges[:, ::-1], held_out().edges()]), NUM_NODES)
    bare = graph_without(graph, hidden)
    bare_sampler = LinkSampler(bare, split().train, config)
    np.testing.assert_array_equal(bare_sampler.links(0, 3).seed_nodes, links.seed_nodes)
    for kind in ("sage", "gat", "gcn"):
        model = build_model(ModelConfig(kind=kind, hidden=8, num_layers=2, num_outputs=4, dropout=0.0))
        params = initial_parameters(model, WIDTH, jax.random.key(1))
        outputs, apply = [], jax.jit(model.apply)
        for one in (sampler, bare_sampler):
            loaded = MemoryLoader.of(one, features()).load(3)
            inputs = step_inputs(loaded, NodeArrays(None, np.diff(bare.indptr), nodes_per_link=4))
            rows = apply(params, inputs.blocks, inputs.features, inputs.node_data)
            outputs.append(np.asarray(rows)[inputs.seed_positions])
        np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)


def test_negatives_of_a_share_are_those_of_the_whole() -> None:
    sources = np.arange(20, dtype=np.int64)
    whole = uniform_negatives(sources, 2, num_nodes=99, key=7)
    np.testing.assert_array_equal(uniform_negatives(sources[5:], 2, num_nodes=99, key=7, first=5), whole[5:])
