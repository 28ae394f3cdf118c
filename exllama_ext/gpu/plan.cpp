#include "plan.h"

#include <algorithm>
#include <cstring>

namespace exl::gpu {

namespace {

constexpr int32_t largest_graph = 64;  // rows; above, the time between two launches is hidden by the work itself
constexpr int32_t large_step = 64;     // buckets above

int32_t bucket(int32_t rows) {
    if (rows > largest_graph) return (rows + large_step - 1) / large_step * large_step;
    int32_t size = 1;
    while (size < rows) size *= 2;
    return size;
}

// Rows start at multiples of 128 bytes and more.
int64_t padded(int64_t width) { return (width + 63) / 64 * 64; }

// Columns of a trellis' input.
int64_t rotated(int64_t width) { return (width + 127) / 128 * 128; }

int64_t bytes_of(exl_dtype dtype) { return dtype == exl_f32 ? 4 : 2; }

void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

}  // namespace

Plan::Plan(std::shared_ptr<const Library> library, int32_t device, int32_t max_rows)
    : library_(library), device_(device), max_rows_(bucket(max_rows)), stream_(library, device) {
    require(max_rows > 0, "max_rows must be positive");
    exl_device_info info;
    library_->check(library_->exl_device_describe(device, &info));
    processors_ = info.processors;
}

Plan::~Plan() { drop_graphs(); }

int Plan::buffer(int64_t width) {
    require(width > 0, "a buffer needs a positive width");
    buffers_.push_back({width, padded(width), std::nullopt, nullptr});
    return int(buffers_.size()) - 1;
}

Plan::Buffer& Plan::written(int index, exl_dtype dtype) {
    Buffer& b = buffers_.at(size_t(index));
    require(!b.dtype || *b.dtype == dtype,
            "a buffer is written in two types: the residual stream is apart from others");
    if (!b.dtype) {
        b.dtype = dtype;
        // Zeros behind a row's end stay zeros: kernels read whole vectors.
        b.memory = std::make_unique<Memory>(library_, device_, max_rows_ * b.stride * bytes_of(dtype));
        library_->check(library_->exl_memory_set(b.memory->data(), 0, b.memory->size(), stream_.get()));
    }
    return b;
}

const Plan::Buffer& Plan::read(int index, exl_dtype dtype) const {
    const Buffer& b = buffers_.at(size_t(index));
    require(b.dtype.has_value(), "a buffer is read before anything was written to it");
    require(*b.dtype == dtype, "a buffer holds another type than the operation reads");
    return b;
}

exl_rows Plan::rows_of(const Launch& l) const {
    return {l.rows, l.pages_per_sequence, l.positions, l.sequences, l.page_table};
}

exl_workspace Plan::workspace() const {
    if (!partials_) return {nullptr, 0, nullptr, 0};
    return {reinterpret_cast<float*>(partials_->data()), partials_->size(),
            reinterpret_cast<uint32_t*>(tickets_->data()), tickets_->size() / 4};
}

void Plan::embed(const Weight& table, int out, float multiplier) {
    require(!table.suh, "no kernel looks up rows of a trellis");
    require(width(out) == table.cols, "the embedding's width differs from the buffer's");
    Buffer& target = written(out, exl_f32);
    kept_.push_back(table.memory);
    steps_.push_back([this, data = target.data(), stride = target.stride, table, multiplier](const Launch& l) {
        if (l.measure) return;
        const exl_embed_args args{l.token_ids, l.rows, static_cast<float*>(data), stride, multiplier};
        const auto* dense = std::get_if<exl_dense>(&table.matrix);
        library_->check(dense ? library_->exl_dense_embed(dense, &args, stream_.get())
                              : library_->exl_group_affine_embed(std::get_if<exl_group_affine>(&table.matrix), &args,
                                                                 stream_.get()));
    });
}

// Into normed_, or rotated by each of `suh` into rotated_.
void Plan::normalize(const Input& input, std::span<const void* const> suh) {
    const Buffer& x = input.x;
    exl_norm_args args{};
    args.x = static_cast<float*>(x.data());
    args.row_index = input.index;
    args.weight = reinterpret_cast<const float*>(input.norm.weight->data());
    args.out = suh.empty() ? normed_->data() : rotated_->data();
    args.x_stride = x.stride;
    args.out_stride = suh.empty() ? x.stride : rotated(x.width);
    args.rows = input.rows;
    args.width = int32_t(x.width);
    args.eps = input.norm.eps;
    args.num_rotations = int32_t(suh.size());
    args.out_step = input.rows * args.out_stride;
    std::copy(suh.begin(), suh.end(), args.suh);
    library_->check(library_->exl_norm(&args, stream_.get()));
}

// Leaves the inputs of trellises in rotated_ and returns that of other matrices.
const void* Plan::prepare(const Input& input, std::span<const Projection> projections) {
    std::vector<const void*> suh;
    for (const Projection& p : projections)
        if (p.weight->suh) suh.push_back(p.weight->suh);
    if (input.norm.weight) {
        if (suh.size() < projections.size()) normalize(input, {});
        if (!suh.empty()) normalize(input, suh);
        return normed_->data();
    }
    if (suh.empty()) return input.x.data();
    exl_hadamard_args args{};
    args.x = input.x.data();
    args.x_stride = input.x.stride;
    args.rows = input.rows, args.cols = int32_t(input.x.width);
    args.num_outputs = int32_t(suh.size());
    std::copy(suh.begin(), suh.end(), args.suh);
    args.out = rotated_->data();
    args.out_stride = rotated(input.x.width);
    args.out_step = input.rows * args.out_stride;
    library_->check(library_->exl_hadamard(&args, stream_.get()));
    return input.x.data();
}

// A buffer that nothing writes (of the second of two gated projections) has no memory.
exl_output Plan::output(const Projection& p, exl_dtype dtype) {
    const Buffer& target = buffers_.at(size_t(p.out));
    return {target.data(), target.stride, dtype, p.add ? 1 : 0,
            p.bias ? reinterpret_cast<const float*>(p.bias->data()) : nullptr};
}

namespace {

// Whether one launch may multiply by both and join the products: outputs of trellises are rotated first.
bool same_kernel(const Weight& a, const Weight& b) {
    if (a.matrix.index() != b.matrix.index() || a.suh) return false;
    if (const auto* first = std::get_if<exl_dense>(&a.matrix))
        return first->dtype == std::get<exl_dense>(b.matrix).dtype;
    const auto &first = std::get<exl_group_affine>(a.matrix), &second = std::get<exl_group_affine>(b.matrix);
    return first.bits == second.bits && first.scheme == second.scheme;
}

}  // namespace

// One call for the projections of each family, which launches once for each format.
void Plan::products(const Launch& l, const Input& input, std::span<const Projection> projections,
                    std::span<const exl_output> outputs, exl_activation activation) {
    const void* x = l.measure ? nullptr : prepare(input, projections);
    const auto run = [&](auto& args, auto query, auto call) {
        using Matrix = decltype(args.projections[0].weight);
        args.rows = input.rows;
        for (size_t i = 0; i < projections.size(); ++i)
            if (const auto* matrix = std::get_if<Matrix>(&projections[i].weight->matrix))
                args.projections[args.num_projections++] = {*matrix, outputs[i]};
        if (args.num_projections == 0) return;
        if (l.measure) {
            int64_t bytes = 0, tickets = 0;
            library_->check(query(&args, &bytes, &tickets));
            l.measure->partial_bytes = std::max(l.measure->partial_bytes, bytes);
            l.measure->num_tickets = std::max(l.measure->num_tickets, tickets);
            return;
        }
        args.workspace = workspace();
        library_->check(call(&args, stream_.get()));
    };
    exl_group_affine_linear_args codes{};
    codes.x = x, codes.x_stride = input.x.stride, codes.activation = activation;
    run(codes, library_->exl_group_affine_linear_workspace, library_->exl_group_affine_linear);
    exl_dense_linear_args numbers{};
    numbers.x = x, numbers.x_stride = input.x.stride, numbers.activation = activation;
    run(numbers, library_->exl_dense_linear_workspace, library_->exl_dense_linear);
    exl_trellis_linear_args trellises{};
    trellises.x = rotated_ ? rotated_->data() : nullptr;
    trellises.x_stride = rotated(input.x.width), trellises.x_step = input.rows * trellises.x_stride;
    run(trellises, library_->exl_trellis_linear_workspace, library_->exl_trellis_linear);
}

// Checks a stage's input, and makes room for what its matrices read.
void Plan::admit(const Norm& norm, const Buffer& input, std::span<const Projection> projections) {
    int64_t trellises = 0;
    for (const Projection& p : projections) {
        require(p.weight->cols == input.width, "a weight's input width differs from the buffer's");
        kept_.push_back(p.weight->memory);
        trellises += p.weight->suh != nullptr;
    }
    widest_rotation_ = std::max(widest_rotation_, trellises * rotated(input.width));
    if (!norm.weight) return;
    widest_norm_ = std::max(widest_norm_, input.stride);
    kept_.push_back(norm.weight);
}

void Plan::linear(int x, std::vector<Projection> projections, const Norm& norm, exl_activation activation) {
    require(!projections.empty() && projections.size() <= exl_max_projections, "1 to 4 projections share an input");
    admit(norm, read(x, norm.weight ? exl_f32 : exl_f16), projections);
    for (const Projection& p : projections) {
        require(p.weight->rows == width(p.out), "a weight's output width differs from the buffer's");
        if (activation == exl_no_activation || &p == &projections[0]) written(p.out, p.add ? exl_f32 : exl_f16);
    }
    const bool gated = activation != exl_no_activation;
    const bool fused = !gated || same_kernel(*projections[0].weight, *projections[1].weight);
    int up = -1;
    if (!fused) {  // gate and up apart, and a kernel that joins them
        up = buffer(projections[1].weight->rows);
        projections[1].out = up;
        written(up, exl_f16);
    }
    // Weights are copied into the step: they are small handles, and the caller's may move.
    std::vector<Weight> weights;
    for (const Projection& p : projections) weights.push_back(*p.weight);
    steps_.push_back([this, x, norm, activation, projections, weights, fused, up](const Launch& l) mutable {
        std::vector<exl_output> outputs;
        for (size_t i = 0; i < projections.size(); ++i) {
            projections[i].weight = &weights[i];
            outputs.push_back(output(projections[i], projections[i].add ? exl_f32 : exl_f16));
        }
        const Input input{buffers_[size_t(x)], norm, nullptr, l.rows};
        products(l, input, projections, outputs, fused ? activation : exl_no_activation);
        if (fused || l.measure) return;
        exl_gate_args gate{};
        gate.gate = gate.out = outputs[0].out;
        gate.up = buffers_[size_t(up)].data();
        gate.gate_stride = gate.out_stride = gate.up_stride = buffers_[size_t(up)].stride;
        gate.rows = l.rows, gate.width = int32_t(buffers_[size_t(up)].width), gate.activation = activation;
        library_->check(library_->exl_gate(&gate, stream_.get()));
    });
}

int Plan::rope_table(std::shared_ptr<Memory> inv_freq, int32_t rotary_dim, float scale) {
    const int index = buffer(rotary_dim);
    float* table = static_cast<float*>(written(index, exl_f32).data());
    steps_.push_back([this, inv_freq, rotary_dim, scale, table](const Launch& l) {
        if (l.measure) return;
        exl_rope_table_args args{};
        args.positions = l.positions;
        args.inv_freq = reinterpret_cast<const float*>(inv_freq->data());
        args.table = table;
        args.rows = l.rows, args.rotary_dim = rotary_dim, args.scale = scale;
        library_->check(library_->exl_rope_table(&args, stream_.get()));
    });
    return index;
}

void Plan::rope_and_store(int q, int k, int v, const exl_kv_cache& cache, int table, const Norm& q_norm,
                          const Norm& k_norm) {
    const Buffer &bq = read(q, exl_f16), &bk = read(k, exl_f16), &bv = read(v, exl_f16);
    exl_kv_geometry geometry;
    library_->check(library_->exl_kv_cache_geometry(&cache, &geometry));
    require(bq.width % cache.head_dim == 0 && bk.width == int64_t(cache.num_kv_heads) * cache.head_dim &&
                bv.width == bk.width,
            "q, k or v do not fit the cache");
    const int32_t heads = int32_t(bq.width / cache.head_dim);
    rotated_width_ = std::max(rotated_width_, int64_t(heads) * geometry.padded_dim);
    const int32_t layer = num_caches_++;
    const auto vector_of = [](const Norm& n) {
        return n.weight ? reinterpret_cast<const float*>(n.weight->data()) : nullptr;
    };
    steps_.push_back([this, q, k, v, cache, table, q_norm, k_norm, heads, geometry, layer, vector_of](const Launch& l) {
        if (l.measure) return;
        const Buffer &bq = buffers_[size_t(q)], &bk = buffers_[size_t(k)], &bv = buffers_[size_t(v)];
        exl_rope_and_store_args args{};
        args.q = bq.data(), args.k = bk.data(), args.v = bv.data(), args.q_out = rotated_q_->data();
        args.q_stride = bq.stride, args.k_stride = bk.stride, args.v_stride = bv.stride;
        args.q_out_stride = int64_t(heads) * geometry.padded_dim;
        args.num_heads = heads;
        args.q_norm = vector_of(q_norm), args.k_norm = vector_of(k_norm);
        args.q_eps = q_norm.eps, args.k_eps = k_norm.eps;
        if (table >= 0) {
            args.table = static_cast<const float*>(buffers_[size_t(table)].data());
            args.rotary_dim = int32_t(buffers_[size_t(table)].width);
        }
        args.cache = cache;
        args.rows = rows_of(l);
        args.faults = l.faults;
        args.layer = layer;
        library_->check(library_->exl_rope_and_store(&args, stream_.get()));
    });
}

void Plan::attention(int q, int out, const exl_kv_cache& cache, float scale, int32_t window, float softcap) {
    const Buffer& bq = read(q, exl_f16);
    require(bq.width % cache.head_dim == 0 && width(out) == bq.width, "query heads do not fit the cache");
    written(out, exl_f16);
    exl_kv_geometry geometry;
    library_->check(library_->exl_kv_cache_geometry(&cache, &geometry));
    const int32_t heads = int32_t(bq.width / cache.head_dim);
    steps_.push_back([this, out, cache, scale, window, softcap, heads, geometry](const Launch& l) {
        const Buffer& bo = buffers_[size_t(out)];
        exl_attention_args args{};
        args.q = rotated_q_ ? rotated_q_->data() : nullptr;
        args.out = bo.data();
        args.q_stride = int64_t(heads) * geometry.padded_dim, args.out_stride = bo.stride;
        args.num_heads = heads;
        args.scale = scale, args.window = window, args.softcap = softcap;
        args.cache = cache;
        args.rows = rows_of(l);
        library_->check(library_->exl_attention_splits(&args, processors_, &args.splits));
        if (l.measure) {
            exl_attention_workspace size;
            library_->check(library_->exl_attention_workspace_size(&args, &size));
            l.measure->partial_bytes = std::max(l.measure->partial_bytes, size.workspace_bytes);
            l.measure->num_tickets = std::max(l.measure->num_tickets, size.ticket_bytes / 4);
            return;
        }
        args.workspace = partials_->data();
        args.tickets = reinterpret_cast<uint32_t*>(tickets_->data());
        library_->check(library_->exl_attention(&args, stream_.get()));
    });
}

void Plan::logits(int x, const Weight& head, const Norm& norm, float softcap) {
    require(norm.weight != nullptr, "the output head needs a norm before it");
    const Projection projection{&head, -1, nullptr, false};
    admit(norm, read(x, exl_f32), {&projection, 1});
    vocab_ = head.rows;
    steps_.push_back([this, x, head, norm, softcap](const Launch& l) {
        if (l.logit_rows == 0) return;
        const Input input{buffers_[size_t(x)], norm, l.logit_index, l.logit_rows};
        const Projection projection{&head, -1, nullptr, false};
        const exl_output target{l.logits, head.rows, exl_f32, 0, nullptr};
        products(l, input, {&projection, 1}, {&target, 1}, exl_no_activation);
        if (l.measure || softcap <= 0) return;
        exl_logits_args args{};
        args.x = args.out = l.logits;
        args.x_stride = args.out_stride = head.rows;
        args.rows = l.logit_rows, args.vocab = head.rows, args.x_type = exl_f32, args.softcap = softcap;
        library_->check(library_->exl_logits(&args, stream_.get()));
    });
}

// Scratch that all steps share: its size follows from the largest run.
void Plan::reserve() {
    const auto memory = [&](int64_t bytes) { return std::make_unique<Memory>(library_, device_, bytes); };
    normed_ = memory(max_rows_ * widest_norm_ * 2);
    library_->check(library_->exl_memory_set(normed_->data(), 0, normed_->size(), stream_.get()));
    rotated_ = memory(max_rows_ * widest_rotation_ * 2);
    rotated_q_ = memory(max_rows_ * rotated_width_ * 2);
    reserved_ = true;
}

// Makes room for the run; what a graph has baked in is recorded anew when it moves.
void Plan::ensure(int32_t logit_rows, const Inputs& inputs) {
    if (!reserved_) reserve();
    const bool wider = inputs.pages_per_sequence > table_width_;
    const bool more = logit_rows > logits_capacity_ || !logits_;
    if (!wider && !more) return;
    drop_graphs();
    stream_.synchronize();
    if (wider) {
        table_width_ = bucket(inputs.pages_per_sequence);
        const int64_t bytes = (int64_t(max_rows_) * 5 + int64_t(max_rows_) * table_width_) * 4;
        inputs_ = std::make_unique<Memory>(library_, device_, bytes);
        pinned_inputs_ = std::make_unique<PinnedMemory>(library_, bytes);
    }
    if (more) {
        logits_capacity_ = std::max(logit_rows, logits_capacity_);
        logits_ = std::make_unique<Memory>(library_, device_, int64_t(logits_capacity_) * vocab_ * 4);
        pinned_outputs_ =
            std::make_unique<PinnedMemory>(library_, int64_t(logits_capacity_) * vocab_ * 4 + int64_t(max_rows_) * 4);
    }
    Sizes sizes;
    for (int32_t size = 1; size <= max_rows_; size = bucket(size + 1)) {
        Launch l{};
        l.rows = size, l.logit_rows = std::min(logits_capacity_, size), l.pages_per_sequence = table_width_;
        l.measure = &sizes;
        for (const Step& step : steps_) step(l);
    }
    partials_ = std::make_unique<Memory>(library_, device_, sizes.partial_bytes);
    tickets_ = std::make_unique<Memory>(library_, device_, std::max<int64_t>(sizes.num_tickets, 1) * 4);
    library_->check(library_->exl_memory_set(tickets_->data(), 0, tickets_->size(), stream_.get()));
}

// One copy: ids, positions, sequences, faults (rows each), logit rows, then the pages of each sequence of the run.
Plan::Launch Plan::upload(const Inputs& in, int32_t rows, int32_t logit_rows) {
    int32_t* host = reinterpret_cast<int32_t*>(pinned_inputs_->data());
    const int32_t* device = reinterpret_cast<const int32_t*>(inputs_->data());
    int64_t used = 0;
    const auto put = [&](std::span<const int32_t> values, int64_t count, int32_t fill) {
        std::copy(values.begin(), values.end(), host + used);
        std::fill(host + used + values.size(), host + used + count, fill);
        used += count;
        return device + used - count;
    };
    Launch l{};
    l.rows = rows, l.logit_rows = logit_rows, l.pages_per_sequence = table_width_;
    l.token_ids = put(in.token_ids, rows, 0);
    l.positions = put(in.positions, rows, -1);
    int32_t* sequences = host + used;
    l.sequences = put({}, rows, 0);
    l.faults = const_cast<int32_t*>(put({}, rows, -1));
    l.logit_index = put(in.logit_rows, logit_rows, 0);
    l.page_table = device + used;
    const size_t width = size_t(in.pages_per_sequence);
    int32_t number = -1;  // among the sequences of this run, whose rows are neighbours
    for (size_t r = 0; r < in.sequences.size(); ++r) {
        if (r == 0 || in.sequences[r] != in.sequences[r - 1]) {
            ++number;
            put(in.page_table.subspan(size_t(in.sequences[r]) * width, width), table_width_, 0);
        }
        sequences[r] = number;
    }
    l.logits = reinterpret_cast<float*>(logits_->data());
    library_->check(library_->exl_memory_copy(inputs_->data(), host, used * 4, stream_.get()));
    return l;
}

void Plan::launch(const Launch& l) {
    for (const Step& step : steps_) step(l);
}

exl_graph Plan::graph_of(const Launch& l) {
    exl_graph& graph = graphs_[{l.rows, l.logit_rows}];
    if (graph) return graph;
    library_->check(library_->exl_graph_begin(stream_.get()));
    try {
        launch(l);
    } catch (...) {
        if (library_->exl_graph_end(stream_.get(), &graph) == exl_ok) library_->exl_graph_destroy(graph);
        graph = nullptr;
        throw;
    }
    library_->check(library_->exl_graph_end(stream_.get(), &graph));
    return graph;
}

void Plan::drop_graphs() {
    for (const auto& [key, graph] : graphs_)
        if (graph) library_->exl_graph_destroy(graph);
    graphs_.clear();
}

void Plan::run(const Inputs& inputs, float* out, int32_t* faults) {
    const std::lock_guard lock(mutex_);
    const int32_t count = int32_t(inputs.token_ids.size()), wanted = int32_t(inputs.logit_rows.size());
    const int32_t rows = bucket(count), logit_rows = wanted ? std::min(bucket(wanted), rows) : 0;
    require(rows <= max_rows_, "more rows than the plan was made for");
    ensure(logit_rows, inputs);
    const Launch l = upload(inputs, rows, logit_rows);
    // The first step of a bucket runs without a graph: a driver may load kernels then, which it cannot do while it
    // records, and buckets that are met once are not worth recording.
    if (rows <= largest_graph && !graphs_.try_emplace({rows, logit_rows}, nullptr).second)
        library_->check(library_->exl_graph_launch(graph_of(l), stream_.get()));
    else
        launch(l);
    uint8_t* host = pinned_outputs_->data();
    const int64_t bytes = int64_t(wanted) * vocab_ * 4;
    if (bytes) library_->check(library_->exl_memory_copy(host, l.logits, bytes, stream_.get()));
    library_->check(library_->exl_memory_copy(host + bytes, l.faults, int64_t(count) * 4, stream_.get()));
    stream_.synchronize();
    std::memcpy(out, host, size_t(bytes));
    std::memcpy(faults, host + bytes, size_t(count) * 4);
}

}  // namespace exl::gpu
