// Results of the feed-forward layer's products that go out as they are, in slabs of 64 rows by 64 columns (products.h).
#pragma once

#include "cuda/feed_forward/products.h"

namespace hopper_feed_forward {

#if HOPPER_CODE

// SLABS of each tile leave a warpgroup's slots, in turn: by store(walk, number of the slab, slot).
template <int SLABS, typename Tiles, typename F>
__device__ __forceinline__ void store_slabs(const Tiles& tiles, int group, const Problem& problem, F&& store) {
  static_assert(SLABS % Tiles::kSlots == 0);
  int n = 0;
  for (Walk walk(problem); walk.more(); walk.advance(), ++n)
#pragma unroll
    for (int j = 0; j < SLABS; ++j) {
      const int which = j % Tiles::kSlots, use = n * (SLABS / Tiles::kSlots) + j / Tiles::kSlots;
      wait(tiles.done(group, which), use & 1, "results are in shared memory before they are stored (wait)");
      store(walk, j, tiles.slot(group, which));
      commit_stores("a slab's store is waited for");
      wait_stores<0>("results are read before others overwrite them");
      arrive(tiles.ready(group, which), "results are read before others overwrite them (arrival)");
    }
}

#endif

}  // namespace hopper_feed_forward
