// All kernels of one instruction-set level; compiled once per level with its own flags (see exllama_ext/build.py).
#include "attention.h"
#include "embedding.h"
#include "linear.h"
#include "logits.h"
#include "peak.h"
#include "rope.h"
#include "trellis_step.h"

#define EXL_TEXT2(x) #x
#define EXL_TEXT(x) EXL_TEXT2(x)

namespace EXL_ISA {

extern const Kernels kernels;
const Kernels kernels{
    EXL_TEXT(EXL_ISA), linear,     embed,        rope_table,      rope_and_store, attention, linear_scratch,
    attention_scratch, dequantize, logits_peak,  smooth,          exponentials,   entropy,   between,
    int8_peak,         read_all,   trellis_step, trellis_targets, EXL_LEVEL >= 3,
};

}  // namespace EXL_ISA
