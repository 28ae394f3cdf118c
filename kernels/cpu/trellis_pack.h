// Tiles of an EXL3 file into the bands that the trellis kernels read; no bit is added or changed.
#pragma once

#include "pack.h"
#include "trellis.h"

namespace exl::cpu {

class PackedTrellis : public PackedWeight {
 public:
    // suh: fp16 (padded cols,), svh: fp16 (padded rows,); copied.
    PackedTrellis(int64_t rows, int64_t cols, int32_t rate2, layouts::Codebook codebook, const uint16_t* suh,
                  const uint16_t* svh);

    // raw: `count` rows of tiles as in the file, (count, padded rows / 16, 8 * rate2) words, from row `start` on.
    void add_tiles(int64_t start, const uint16_t* raw, int64_t count);
    int64_t tiles_across() const { return tiles_across_; }

 private:
    int64_t tiles_across_;
};

}  // namespace exl::cpu
