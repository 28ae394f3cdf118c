// Where a row's keys and values are.
#pragma once

#include "cache/cache.h"

namespace exl {
namespace kv {

// The position of a row, -1 for padding.
EXL_DEVICE int position_of(const exl_rows& rows, int row) {
    const int position = rows.positions[row];
    return position < rows.pages_per_sequence * exl_page_size ? position : -1;
}

EXL_DEVICE int64_t page_of(const exl_rows& rows, int sequence, int page_index) {
    return rows.page_table[static_cast<int64_t>(sequence) * rows.pages_per_sequence + page_index];
}

}  // namespace kv
}  // namespace exl
