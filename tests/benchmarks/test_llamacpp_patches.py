"""Patches of llama.cpp change what they name, and refuse a source that is not the one they were written for."""

import pytest

from benchmarks.llamacpp_patches import HUGE_PAGES_SYMBOL, PATCHES, Replacement, patched

# The lines that matter of the sources that are patched, as llama.cpp has them.
TILE_CONFIGURATION = """\
inline void ggml_tile_config_init(void) {
    static thread_local bool done = false;

    if (done) {
        return;
    }

    alignas(64) tile_config_t tc = {};
    tc.palette_id = 1;
    _tile_loadconfig(&tc);
    done = true;
}
"""
ALLOCATION = """\
void * ggml_aligned_malloc(size_t size) {
    const int alignment = 64;
    void * aligned_memory = NULL;
    int result = posix_memalign(&aligned_memory, alignment, size);
    return aligned_memory;
}
"""
SOURCES = {"ggml/src/ggml-cpu/amx/mmq.cpp": TILE_CONFIGURATION, "ggml/src/ggml.c": ALLOCATION}


def test_every_patched_file_has_its_source_here() -> None:
    assert set(PATCHES) == set(SOURCES)


def test_the_barrier_stands_right_before_the_configuration_is_loaded_and_nothing_skips_it() -> None:
    lines = [
        line.strip() for line in patched(TILE_CONFIGURATION, PATCHES["ggml/src/ggml-cpu/amx/mmq.cpp"]).splitlines()
    ]
    load = lines.index("_tile_loadconfig(&tc);")
    assert lines[load - 1] == '__asm__ volatile("" : : "r"(&tc) : "memory");'
    assert lines.index("tc.palette_id = 1;") < load - 1
    assert "return;" not in lines


def test_huge_pages_are_a_switch_that_is_off_at_first() -> None:
    result = patched(ALLOCATION, PATCHES["ggml/src/ggml.c"])
    assert f"int {HUGE_PAGES_SYMBOL} = 0;" in result
    assert result.count("madvise(aligned_memory, size, MADV_HUGEPAGE)") == 1
    assert "posix_memalign(&aligned_memory, alignment, size)" not in result


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_without_the_expected_text_is_refused(name: str) -> None:
    for old, _ in PATCHES[name]:
        with pytest.raises(ValueError, match="expected once and occurs 0 times"):
            patched(SOURCES[name].replace(old, ""), PATCHES[name])


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_that_is_patched_already_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected once"):
        patched(patched(SOURCES[name], PATCHES[name]) + SOURCES[name], PATCHES[name])


def test_text_that_occurs_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'a' ... was expected once and occurs 2 times"):
        patched("a b a", (Replacement("a", "c"),))
