"""What is changed in llama.cpp's sources before they are built: pure text in, text out, and loud where the text is not as expected."""

from typing import NamedTuple


class Replacement(NamedTuple):
    """`old` occurs exactly once in the file and becomes `new`."""

    old: str
    new: str


# gcc 12 does not know that `_tile_loadconfig` reads memory, and drops the stores before it: the first product above
# batch 1 dies on an illegal instruction. A compiler barrier keeps them. And the configuration belongs to the thread:
# ggml loads it once, which no longer holds where another kernel of this process has loaded its own on that thread, so it
# is loaded for every product (some ten cycles). Machines without AMX compile none of this.
_TILE_CONFIGURATION = (
    Replacement("    if (done) {\n        return;\n    }\n", "    (void) done;\n"),
    Replacement(
        "    _tile_loadconfig(&tc);\n",
        '    __asm__ volatile("" : : "r"(&tc) : "memory");\n    _tile_loadconfig(&tc);\n',
    ),
)

# One page policy for both sides of a comparison: what ggml allocates (weights, cache, scratch) asks for huge pages while
# the variable that this adds is not 0. At 0, allocation is as it was.
HUGE_PAGES_SYMBOL = "bandwise_huge_pages"
_HUGE_PAGES = (
    Replacement(
        "void * ggml_aligned_malloc(size_t size) {\n",
        "#include <sys/mman.h>\n"
        f'__attribute__((visibility("default"))) int {HUGE_PAGES_SYMBOL} = 0;\n'
        "void * ggml_aligned_malloc(size_t size) {\n",
    ),
    Replacement(
        "    int result = posix_memalign(&aligned_memory, alignment, size);\n",
        "    const size_t huge_page = (size_t) 2 << 20;\n"
        f"    const int huge = {HUGE_PAGES_SYMBOL} && size >= huge_page;\n"
        "    int result = posix_memalign(&aligned_memory, huge ? huge_page : (size_t) alignment, size);\n"
        "    if (result == 0 && huge) {\n"
        "        (void) madvise(aligned_memory, size, MADV_HUGEPAGE);\n"
        "    }\n",
    ),
)

PATCHES = {"ggml/src/ggml-cpu/amx/mmq.cpp": _TILE_CONFIGURATION, "ggml/src/ggml.c": _HUGE_PAGES}


def patched(source: str, replacements: tuple[Replacement, ...]) -> str:
    """`source` with every replacement made. Raises ValueError where one's text does not occur exactly once."""
    for old, new in replacements:
        if (count := source.count(old)) != 1:
            raise ValueError(f"{old.strip().splitlines()[0]!r} ... was expected once and occurs {count} times")
        source = source.replace(old, new)
    return source
