// A fused stage of trellises, compiled once per instruction-set level:
// [RMSNorm] -> per matrix: * suh, Hadamard, quantize -> bands -> Hadamard, * svh -> [bias] [activation * up] [residual add].
//
//   rows of x --prepare--> records of one matrix --barrier--> tasks (band, chunk of rows), any worker --> 128 columns
//
// The input of every matrix is rotated by signs of its own, so records are not shared between matrices; gate and up,
// which are multiplied with each other, are prepared together. For a row or two every worker prepares all records itself.
#include "trellis.h"

#include "epilogue.h"
#include "team.h"
#include "trellis_multiply.h"

namespace EXL_ISA {

namespace {

constexpr int trellis_private_rows = 2;

int bands_of(const Weight& w) { return (w.rows + trellis_block - 1) / trellis_block; }

int round_up(int n, int step) { return (n + step - 1) / step * step; }

// How activations are held for a run of this many rows. All kinds give the same bits.
Codes codes_for(const Weight& w, int rows) {
    if (w.codebook != Codebook::mul1) return Codes::floats;
    if (EXL_LEVEL >= 2 && rows <= trellis_private_rows) return Codes::pairs;
    return EXL_LEVEL >= 4 ? Codes::bytes : Codes::words;
}

// Where the records of one matrix lie: main records, then those of rounding errors, then flags.
struct RecordLayout {
    Codes codes;
    int rows, k, residual_base;
    bool residuals;
    int64_t stride, flags_offset, bytes;

    RecordLayout(const LinearArgs& args, const Weight& w, int num_rows)
        : codes(codes_for(w, num_rows)), rows(num_rows), k(w.cols_padded) {
        residual_base = codes == Codes::bytes ? round_up(rows, 16) : rows;  // tiles read whole
        residuals = codes != Codes::floats && args.residual_above < __builtin_inff();
        stride = TrellisRecords::stride_of(codes, k);
        // A tile of residuals may begin at any record, and end up to 15 after the last.
        const int spare = codes == Codes::bytes && residuals ? 16 : 0;
        flags_offset = stride * (residual_base * (residuals ? 2 : 1) + spare);
        bytes = flags_offset + round_up(4 * rows, 64);
    }

    TrellisRecords records(uint8_t* base) const { return {base, stride, k, codes}; }
    int32_t* flags(uint8_t* base) const { return reinterpret_cast<int32_t*>(base + flags_offset); }
};

// One matrix with its prepared input.
struct Side {
    const Projection* projection;
    RecordLayout layout;
    uint8_t* base;
    int32_t* flagged;  // rows with a residual, ascending; its place in the list is its record
    int num_flagged = 0;

    const Weight& weight() const { return *projection->weight; }
    TrellisRecords records() const { return layout.records(base); }
    int place(int row) const {
        int i = 0;
        while (i < num_flagged && flagged[i] < row) ++i;
        return i;
    }
};

// Rows per task: many, so that decoding is shared, but no fewer tasks than keep all workers busy.
int chunk_rows(const Weight& w, int rows, int workers) {
    const int most = w.codebook == Codebook::mul1 ? trellis_chunk : 64;
    int chunk = round_up(rows, 16);
    while (chunk > most || (chunk > 128 && bands_of(w) * ((rows + chunk - 1) / chunk) < 3 * workers))
        chunk = round_up((chunk + 1) / 2, 16);
    return chunk;
}

// What a worker needs for itself. y: results of a chunk and of its residuals, for two matrices.
struct WorkerLayout {
    int64_t line, codes, flagged, y, y_bytes, records, bytes;

    WorkerLayout(const LinearArgs& args, int rows, int workers) {
        int64_t own = 0;
        int k = 0;
        y_bytes = 0;
        for (int p = 0; p < args.num_projections; ++p) {
            const Weight& w = *args.projection[p].weight;
            const RecordLayout layout(args, w, rows);
            const int64_t row = layout.codes == Codes::floats ? 2048 : 512;
            const int64_t need = row * chunk_rows(w, rows, workers) * (layout.residuals ? 2 : 1);
            y_bytes = need > y_bytes ? need : y_bytes;
            k = w.cols_padded;
            own += layout.bytes;
        }
        line = 0;
        codes = line + int64_t(k) * 4;
        flagged = codes + k;
        y = flagged + int64_t(max_projections) * round_up(4 * rows, 64);
        records = y + 2 * y_bytes;
        bytes = records + (rows <= trellis_private_rows ? own : 0);
    }
};

struct Stage {
    const LinearArgs& args;
    int rows;
    uint8_t* own;
    const WorkerLayout& mine;
    Worker& worker;

    float* line() const { return reinterpret_cast<float*>(own + mine.line); }
    uint8_t* codes() const { return own + mine.codes; }
    float* y(int i) const { return reinterpret_cast<float*>(own + mine.y + i * mine.y_bytes); }
    const float* input(int r) const { return args.x + int64_t(args.row_index ? args.row_index[r] : r) * args.x_stride; }

    Side side(int p, uint8_t* base) const {
        int32_t* list = reinterpret_cast<int32_t*>(own + mine.flagged + p * int64_t(round_up(4 * rows, 64)));
        return {&args.projection[p], RecordLayout(args, *args.projection[p].weight, rows), base, list};
    }

    void prepare(const Side& s, int r) const {
        const float error = prepare_trellis_row(args, input(r), s.weight(), s.records(), r, line(), codes());
        s.layout.flags(s.base)[r] = args.residual_above == 0.0f || error > args.residual_above;
    }
    void list_flagged(Side& s) const {
        s.num_flagged = 0;
        for (int r = 0; s.layout.residuals && r < rows; ++r)
            if (s.layout.flags(s.base)[r]) s.flagged[s.num_flagged++] = r;
    }
    void prepare_residual(const Side& s, int place) const {
        prepare_trellis_residual(args, input(s.flagged[place]), s.weight(), s.records(), s.layout.residual_base + place,
                                 line(), codes());
    }

    void prepare_all(Side* sides, int count) const {
        for (int i = 0; i < count; ++i) {
            for (int r = 0; r < rows; ++r) prepare(sides[i], r);
            list_flagged(sides[i]);
            for (int place = 0; place < sides[i].num_flagged; ++place) prepare_residual(sides[i], place);
        }
    }
    void prepare_together(Side* sides, int count) const {
        worker.begin_stage();
        for (int64_t i; (i = worker.next()) < int64_t(count) * rows;) prepare(sides[i / rows], int(i % rows));
        worker.barrier();
        int total = 0;
        for (int i = 0; i < count; ++i) {
            list_flagged(sides[i]);
            total += sides[i].num_flagged;
        }
        if (total == 0) return;
        worker.begin_stage();
        for (int64_t i; (i = worker.next()) < total;) {
            int s = 0, place = int(i);
            while (place >= sides[s].num_flagged) place -= sides[s++].num_flagged;
            prepare_residual(sides[s], place);
        }
        worker.barrier();
    }

    // Rows [r0, r1) of a band into y, [c][lane] each and not yet rotated; returns where the residuals' results begin.
    float* multiply(const Side& s, int band, int r0, int r1, float* out) const {
        const int width = s.layout.codes == Codes::floats ? 512 : 128, p0 = s.place(r0), p1 = s.place(r1);
        float* residuals = out + int64_t(width) * round_up(r1 - r0, s.layout.codes == Codes::bytes ? 16 : 1);
        const TrellisRange ranges[2] = {{r0, r1 - r0, out}, {s.layout.residual_base + p0, p1 - p0, residuals}};
        dispatch_rate(s.weight().rate2, [&](auto rate2) {
            multiply_band<rate2.value>(s.weight(), band, s.records(), ranges, p1 > p0 ? 2 : 1);
        });
        return residuals;
    }
};

// Scales and bias of the 128 columns of a band.
struct BandScales {
    float scale[128], bias[128];

    BandScales(const Side& s, int band) {
        const Weight& w = s.weight();
        const float factor = w.codebook == Codebook::mul1 ? root_128 * exl::layouts::mul1_scale : root_128;
        for (int i = 0; i < trellis_block; ++i) {
            const int column = trellis_block * band + i;
            scale[i] = exl::half_to_float(w.svh[column]) * factor;
            bias[i] = s.projection->bias && column < w.rows ? s.projection->bias[column] : 0.0f;
        }
    }
};

// Results of one row: main plus residual, rotated back, scaled, in the order of columns.
void finish_row(float* y, const float* residual, const BandScales& band, float* out) {
    f32v v[8];
    for (int c = 0; c < 8; ++c) {
        v[c] = f_load(y + 16 * c);
        if (residual) v[c] = f_add(v[c], f_load(residual + 16 * c));
    }
    hadamard_128(v);
    for (int c = 0; c < 8; ++c) f_store(y + 16 * c, v[c]);
    for (int lane = 0; lane < 16; ++lane)
        for (int c = 0; c < 8; ++c) out[32 * (lane / 4) + 16 * (lane % 2) + 8 * (lane / 2 % 2) + c] = y[16 * c + lane];
    for (int i = 0; i < trellis_block; i += 16)
        f_store(out + i, f_fma(f_load(out + i), f_load(band.scale + i), f_load(band.bias + i)));
}

// One side of a task: its results are finished row by row, in ascending order.
struct Results {
    const Side& side;
    BandScales scales;
    float *y, *residuals;
    int width, r0, next;  // next: place in the list of flagged rows

    Results(const Stage& stage, const Side& s, int band, int first, int last, float* out)
        : side(s),
          scales(s, band),
          y(out),
          width(s.layout.codes == Codes::floats ? 512 : 128),
          r0(first),
          next(s.place(first)) {
        residuals = stage.multiply(s, band, first, last, out);
    }

    void finish(int r, float* out) {
        const bool has_residual = next < side.num_flagged && side.flagged[next] == r;
        finish_row(y + int64_t(width) * (r - r0), has_residual ? residuals : nullptr, scales, out);
        if (has_residual) {
            residuals += width;
            ++next;
        }
    }
};

void write_row(const LinearArgs& args, const Projection& p, int band, int r, const float* values, const float* up) {
    const int column = trellis_block * band, left = p.weight->rows - column;
    float* out = p.out + r * p.out_stride + column;
    for (int i = 0; i < trellis_block && i < left; i += 16) {
        f32v v = f_load(values + i);
        if (up) v = f_mul(activate(v, args.activation), f_load(up + i));
        if (args.softcap > 0) v = f_mul(f_tanh(f_div(v, f_set(args.softcap))), f_set(args.softcap));
        if (left - i >= 16) {
            f_store(out + i, p.add ? f_add(f_load(out + i), v) : v);
            continue;
        }
        float line[16];
        f_store(line, v);
        for (int j = 0; j < left - i; ++j) out[i + j] = p.add ? out[i + j] + line[j] : line[j];
    }
}

// Bands of one output, from one matrix or from gate and up.
void run_task(const Stage& stage, const Side* sides, int band, int r0, int r1) {
    const bool gated = stage.args.activation != Activation::none;
    alignas(64) float values[trellis_block], up[trellis_block];
    Results first(stage, sides[0], band, r0, r1, stage.y(0));
    if (!gated) {
        for (int r = r0; r < r1; ++r) {
            first.finish(r, values);
            write_row(stage.args, *sides[0].projection, band, r, values, nullptr);
        }
        return;
    }
    Results second(stage, sides[1], band, r0, r1, stage.y(1));
    for (int r = r0; r < r1; ++r) {
        first.finish(r, values);
        second.finish(r, up);
        write_row(stage.args, *sides[0].projection, band, r, values, up);
    }
}

// Hands out (output, band, chunk of rows); chunks of a band follow each other.
void run_tasks(const Stage& stage, const Side* sides, int outputs) {
    int64_t first[max_projections + 1] = {0};
    int chunk[max_projections], chunks[max_projections];
    for (int p = 0; p < outputs; ++p) {
        chunk[p] = chunk_rows(sides[p].weight(), stage.rows, stage.worker.count());
        chunks[p] = (stage.rows + chunk[p] - 1) / chunk[p];
        first[p + 1] = first[p] + int64_t(bands_of(sides[p].weight())) * chunks[p];
    }
    stage.worker.begin_stage();
    for (int64_t task; (task = stage.worker.next()) < first[outputs];) {
        int p = 0;
        while (task >= first[p + 1]) ++p;
        const int64_t local = task - first[p];
        const int r0 = int(local % chunks[p]) * chunk[p], r1 = r0 + chunk[p] < stage.rows ? r0 + chunk[p] : stage.rows;
        run_task(stage, sides + p, int(local / chunks[p]), r0, r1);
    }
}

}  // namespace

void trellis_linear(const LinearArgs& args, const Run& run, Worker& worker) {
    if (run.rows == 0) return;
    const WorkerLayout mine(args, run.rows, worker.count());
    uint8_t* own = worker.scratch(size_t(mine.bytes));
    const Stage stage{args, run.rows, own, mine, worker};
#if EXL_LEVEL >= 4
    configure_tiles(worker, 16, 64);
#endif
    const bool gated = args.activation != Activation::none;
    if (run.rows <= trellis_private_rows) {
        uint8_t* base = own + mine.records;
        Side sides[max_projections] = {stage.side(0, base), stage.side(0, base), stage.side(0, base),
                                       stage.side(0, base)};
        for (int p = 0; p < args.num_projections; ++p) {
            sides[p] = stage.side(p, base);
            base += sides[p].layout.bytes;
        }
        stage.prepare_all(sides, args.num_projections);
        return run_tasks(stage, sides, gated ? 1 : args.num_projections);
    }
    for (int p = 0; p < args.num_projections; p += gated ? 2 : 1) {
        if (p) worker.barrier();  // records of the projection before are no longer read
        Side sides[2] = {stage.side(p, run.shared), stage.side(p, run.shared)};
        if (gated) sides[1] = stage.side(p + 1, run.shared + sides[0].layout.bytes);
        stage.prepare_together(sides, gated ? 2 : 1);
        run_tasks(stage, sides, 1);
    }
}

int64_t trellis_scratch(const LinearArgs& args, int32_t max_rows) {
    int64_t most = 0, sum = 0;
    for (int p = 0; p < args.num_projections; ++p) {
        const int64_t bytes = RecordLayout(args, *args.projection[p].weight, max_rows).bytes;
        most = bytes > most ? bytes : most;
        sum += bytes;
    }
    return args.activation == Activation::none ? most : sum;
}

}  // namespace EXL_ISA
