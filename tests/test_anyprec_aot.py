"""How `make aot` compares compilers' figures with the record, and reads them."""

from benchmarks.anyprec_aot import collectives, copies_of_planes, count_bundles, count_spills, worse

RECORDED = {"v5e 3 bits": {"bundles": 100.0, "spills": 0.0}, "h100 3 bits": {"registers": 40}}


def test_equal_better_and_slightly_worse_pass():
    measured = {
        "v5e 3 bits": {"bundles": 105.0, "spills": 0.0},
        "h100 3 bits": {"registers": 30},
        "new": {"registers": 1},
    }
    assert worse(RECORDED, RECORDED) == []
    assert worse(RECORDED, measured) == []


def test_each_figure_that_is_worse_is_one_line():
    measured = {"v5e 3 bits": {"bundles": 105.1, "spills": 0.1}, "h100 3 bits": {"registers": 43}}
    assert worse(RECORDED, measured) == [
        "v5e 3 bits: bundles was 100, is 105.1",
        "v5e 3 bits: spills was 0, is 0.1",
        "h100 3 bits: registers was 40, is 43",
    ]


def test_what_is_missing_is_worse():
    assert worse(RECORDED, {"v5e 3 bits": {"bundles": 100.0}}) == [
        "v5e 3 bits: spills was 0, and is missing",
        "h100 3 bits: recorded, but not compiled",
    ]


def test_bundles_of_the_grid_loop_are_counted():
    text = """
     0   :  { %9 = sst [smem:[#allocation6]] %s1 }
   0x1 LB: > { %s30 = sadd.s32 1, %s9 }
   0x2   : > { %v1 = vld [vmem:[%s9]] ;;  %v2 = vld [vmem:[%s9]] }
   0x3   : >> {}
   0x4 PF: > { %s15 = sadd.s32 1, %s9 }
   0x5   :  { %10 = sst [smem:[#allocation6]] %s1 }
"""
    assert count_bundles(text) == 4


def test_spills_are_summed_over_bundles():
    assert count_spills("MXU XLU ...\n1 2 3 4 5 6 7 8 9 10\n0 0 0 0 0 0 0 1 1 0\n0 0 0 0 0 0 0 2 2 0\n") == 3


def test_copies_of_the_planes_are_seen():
    hlo = "%copy.1 = u32[16,8,4096,128]{3,2,1,0} copy(%p)\n%copy.2 = bf16[16,8]{1,0} copy(%x)"
    assert copies_of_planes(hlo) == 1


def test_collectives_are_counted_where_they_begin() -> None:
    hlo = """
  %psum.46 = f32[1,1,2048]{2,1,0} all-reduce(%fusion.30), channel_id=1
  %start = (f32[8], f32[8]) all-reduce-start(%fusion.31), channel_id=2
  %done = f32[8] all-reduce-done(%start)
  %gathered = f32[32] all-gather(%fusion.32), dimensions={0}
  %sum = f32[8] fusion(%all-reduce.15), kind=kLoop
"""
    assert collectives(hlo, "all-reduce").count("\n") == 2
    assert collectives(hlo, "all-gather").count("\n") == 1
