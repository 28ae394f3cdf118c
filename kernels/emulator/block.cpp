#include "emulator/block.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>

#include "emulator/sanitizer.h"
#include "emulator/stock.h"

namespace exl::emulator {

__thread const Position* position __attribute__((tls_model("initial-exec"))) = nullptr;

namespace {

__thread Block* running __attribute__((tls_model("initial-exec"))) = nullptr;

constexpr size_t shared_alignment = 128;

void* poisoned(size_t bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, shared_alignment, bytes)) throw std::bad_alloc();
    std::memset(memory, 0xff, bytes);
    return memory;
}

std::string format_text(const char* format, va_list values) {
    char text[1024];
    std::vsnprintf(text, sizeof text, format, values);
    return text;
}

}  // namespace

bool Place::operator==(const Place& other) const {
    const bool same_file = file == other.file || (file && other.file && std::strcmp(file, other.file) == 0);
    return line == other.line && same_file && std::strcmp(name, other.name) == 0;
}

std::string Place::text() const {
    return file ? std::string(name) + " at " + file + ":" + std::to_string(line) : std::string(name);
}

Block::Block(const Launch& launch, const Limits& limits, Order order, uint64_t seed)
    : launch_(launch), limits_(limits), order_(order), seed_(seed), size_(static_cast<int>(launch.block.x)) {
    threads_ = take_threads(size_);
}

Block::~Block() {
    if (failure_.empty()) give_threads(std::move(threads_));
}

void Block::order_threads(uint64_t block_number) {
#if defined(EXL_TSAN)
    // A thread of the next block runs as another TSan fiber, else the two would count as one and never race.
    std::rotate(threads_.begin(), threads_.begin() + (size_ > 1), threads_.end());
#endif
    ring_.clear();
    for (auto& thread : threads_) ring_.push_back(thread.get());
    if (order_ == Order::reverse) std::reverse(ring_.begin(), ring_.end());
    if (order_ != Order::random) return;
    std::mt19937_64 numbers(seed_ * 0x9e3779b97f4a7c15u + block_number);
    std::shuffle(ring_.begin(), ring_.end(), numbers);
}

// Rendezvous of groups and waves, and fresh addresses for ThreadSanitizer to order by: two blocks share none.
void Block::make_meetings() {
    const int groups = (size_ + group_lanes - 1) / group_lanes;
    const int waves = (size_ + warp_size_of_build - 1) / warp_size_of_build;
    groups_.assign(groups, Meeting());
    waves_.assign(waves, Meeting());
    tokens_.reset(new char[8 * (groups + waves + 1)]);
    char* token = tokens_.get();
    for (auto* meetings : {&groups_, &waves_})
        for (Meeting& meeting : *meetings) meeting.token = token, token += 8;
    barrier_token_ = token;
    for (int i = 0; i < size_; i++) {
        groups_[i / group_lanes].members |= uint64_t(1) << i % group_lanes;
        waves_[i / warp_size_of_build].members |= uint64_t(1) << i % warp_size_of_build;
    }
}

void Block::prepare(uint3 index) {
    const uint64_t grid_x = launch_.grid.x, grid_y = launch_.grid.y;
    order_threads(index.x + grid_x * (index.y + grid_y * index.z));
    make_meetings();
    barrier_ = Barrier();
    dynamic_ = launch_.shared_bytes ? poisoned(launch_.shared_bytes) : nullptr;
    static_bytes_ = 0;
    live_ = size_;
    cursor_ = -1;
    for (int i = 0; i < size_; i++) {
        Thread& thread = *threads_[i];
        thread.position = {{static_cast<uint32_t>(i), 0, 0}, index, launch_.block, launch_.grid};
        thread.number = i;
        thread.done = false;
        thread.waits_for = nullptr;
        thread.copies.clear();
        thread.context.start(thread_entry);
    }
}

void Block::clean_up() {
    for (const SharedArray& array : arrays_) std::free(array.memory);
    arrays_.clear();
    std::free(dynamic_);
    dynamic_ = nullptr;
    tokens_.reset();
    if (failure_.empty()) return;
    for (auto& thread : threads_)
        if (!thread->done) thread->context.abandon();
}

bool Block::run(uint3 index) {
    Unseen unseen;
    prepare(index);
    running = this;
    current_ = next_thread();
    position = &current_->position;
    left_ = &host_;
    Context::change(host_, current_->context);
    running = nullptr;
    current_ = nullptr;
    position = nullptr;
    clean_up();
    return failure_.empty();
}

void Block::thread_entry() { running->run_thread(); }

void Block::run_thread() {
    Context::arrived(*left_);
    acquire(launch_start_token());
    launch_.body();
    release(launch_end_token());
    Thread& me = *current_;
    if (!me.copies.empty()) emulator::fail("the thread ends with asynchronous copies that were never waited for");
    me.done = true;
    live_--;
    groups_[me.number / group_lanes].exited |= uint64_t(1) << me.number % group_lanes;
    waves_[me.number / warp_size_of_build].exited |= uint64_t(1) << me.number % warp_size_of_build;
    if (barrier_.arrived && barrier_.arrived == live_) finish_barrier();
    Thread* next = live_ ? next_thread() : nullptr;
    if (live_ && !next) emulator::fail("deadlock: the other threads wait for one that has left the kernel");
    left_ = &me.context;
    current_ = next;
    if (next) position = &next->position;
    Context::change(me.context, next ? next->context : host_, true);
    std::abort();
}

Thread* Block::next_thread() {
    // Turn by turn, groups of lanes would stay abreast and hide a missing barrier. In random order the first that can go
    // on does, so that one group runs ahead of the others as far as barriers let it.
    if (order_ == Order::random) cursor_ = size_ - 1;
    for (int i = 0; i < size_; i++) {
        cursor_ = cursor_ + 1 < size_ ? cursor_ + 1 : 0;
        Thread* thread = ring_[cursor_];
        if (thread->done || (thread->waits_for && *thread->waits_for == thread->seen)) continue;
        thread->waits_for = nullptr;
        return thread;
    }
    return nullptr;
}

void Block::wait(const uint32_t& generation, uint32_t seen, const Place& place) {
    Thread& me = *current_;
    me.waits_for = &generation;
    me.seen = seen;
    me.place = place;
    Thread* next = next_thread();
    if (!next) emulator::fail("deadlock: no thread can go on");
    if (next == &me) return;
    left_ = &me.context;
    current_ = next;
    position = &next->position;
    Context::change(me.context, next->context);
}

// Threads that have left the kernel take no part, as on hardware.
void Block::finish_barrier() {
    barrier_.results[barrier_.generation & 1] = barrier_.predicates;
    barrier_.predicates = 0;
    barrier_.arrived = 0;
    barrier_.generation++;
}

int Block::barrier(int predicate, const Place& place) {
    release(barrier_token_);
    if (barrier_.arrived && !(barrier_.place == place))
        emulator::fail("threads of one block meet at different barriers: %s, and %s", barrier_.place.text().c_str(),
                       place.text().c_str());
    const uint32_t generation = barrier_.generation;
    barrier_.place = place;
    barrier_.predicates += predicate != 0;
    if (++barrier_.arrived == live_)
        finish_barrier();
    else
        wait(barrier_.generation, generation, place);
    acquire(barrier_token_);
    return barrier_.results[generation & 1];
}

void Block::meet(Meeting& meeting, uint64_t bit, const char* name, bool memory_order) {
    if (meeting.exited)
        emulator::fail("%s waits for lanes that have left the kernel (lanes 0x%llx)", name,
                       static_cast<unsigned long long>(meeting.exited));
    if (meeting.arrived && std::strcmp(meeting.name, name) != 0)
        emulator::fail("lanes that belong together meet in different collectives: %s and %s", meeting.name, name);
    meeting.name = name;
    if (memory_order) release(meeting.token);
    meeting.arrived |= bit;
    const uint32_t generation = meeting.generation;
    if (meeting.arrived == meeting.members) {
        meeting.arrived = 0;
        meeting.generation++;
    } else {
        wait(meeting.generation, generation, {name});
    }
    if (memory_order) acquire(meeting.token);
}

Deposits Block::rendezvous(const char* name, const void* deposit, int bytes, bool memory_order, Finish finish) {
    Meeting& group = groups_[current_->number / group_lanes];
    const int lane = current_->number % group_lanes;
    auto* deposits = group.deposits[group.generation & 1];
    {
        Unseen unseen;
        if (bytes) std::memcpy(deposits[lane], deposit, static_cast<size_t>(bytes));
    }
    const uint64_t bit = uint64_t(1) << lane;
    if (finish && (group.arrived | bit) == group.members) finish(deposits);
    meet(group, bit, name, memory_order);
    return deposits;
}

void Block::converge(const char* name) {
    if (warp_size_of_build == group_lanes) return;  // the rendezvous of the group says it all
    Meeting& wave = waves_[current_->number / warp_size_of_build];
    meet(wave, uint64_t(1) << current_->number % warp_size_of_build, name, false);
}

void* Block::shared(const void* key, size_t bytes) {
    for (const SharedArray& array : arrays_)
        if (array.key == key) return array.memory;
    Unseen unseen;
    static_bytes_ += bytes;
    if (static_bytes_ > limits_.static_shared_bytes)
        emulator::fail("%zu bytes of EXL_SHARED, at most %zu fit: use EXL_DYNAMIC_SHARED", static_bytes_,
                       limits_.static_shared_bytes);
    if (static_bytes_ + launch_.shared_bytes > limits_.shared_bytes)
        emulator::fail("%zu bytes of shared memory, the device has %zu for a block",
                       static_bytes_ + launch_.shared_bytes, limits_.shared_bytes);
    arrays_.push_back({key, poisoned(bytes)});
    return arrays_.back().memory;
}

std::string Block::waiting_threads() const {
    std::map<std::string, std::vector<int>> places;
    for (const auto& thread : threads_)
        if (!thread->done && thread->waits_for) places[thread->place.text()].push_back(thread->number);
    std::string text;
    for (const auto& [place, numbers] : places)
        text += "\n  " + std::to_string(numbers.size()) + " threads wait in " + place + ", the first is thread " +
                std::to_string(numbers.front());
    return text;
}

void Block::describe_failure(const char* format, va_list values) {
    Unseen unseen;
    const uint3 index = current_->position.block;
    char where[160];
    std::snprintf(where, sizeof where, "\n  block (%u, %u, %u), thread %d", index.x, index.y, index.z,
                  current_->number);
    failure_ = format_text(format, values) + where + waiting_threads();
}

void Block::fail(const char* format, va_list values) {
    describe_failure(format, values);
    left_ = &current_->context;
    Context::change(current_->context, host_);
    std::abort();
}

void fail(const char* format, ...) {
    va_list values;
    va_start(values, format);
    running->fail(format, values);
}

int barrier(int predicate, const char* name, const char* file, int line) {
    return running->barrier(predicate, {name, file, line});
}

void* shared(const void* key, size_t bytes) { return running->shared(key, bytes); }
void* dynamic_shared() { return running->dynamic_shared(); }

Deposits rendezvous(const char* name, const void* deposit, int bytes, bool memory_order, Finish finish) {
    return running->rendezvous(name, deposit, bytes, memory_order, finish);
}

void converge(const char* name) { running->converge(name); }

uint32_t shuffle(uint32_t value, int source) {
    const Deposits deposits = running->rendezvous("shuffle", &value, sizeof value, false, nullptr);
    if (source < 0 || source >= group_lanes) fail("shuffle from lane %d, there are 32", source);
    std::memcpy(&value, deposits[source], sizeof value);
    return value;
}

uint32_t ballot(bool predicate) {
    const unsigned char mine = predicate;
    const Deposits deposits = running->rendezvous("ballot", &mine, 1, false, nullptr);
    uint32_t bits = 0;
    for (int lane = 0; lane < group_lanes; lane++) bits |= uint32_t(deposits[lane][0]) << lane;
    return bits;
}

void sync_warp() { running->rendezvous("sync_warp", nullptr, 0, true, nullptr); }

void issue(AsyncCopy copy) {
    Unseen unseen;
    running->thread().copies.open.push_back(copy);
}

void commit() {
    Unseen unseen;
    AsyncCopies& copies = running->thread().copies;
    copies.groups.push_back(std::move(copies.open));
    copies.open.clear();
}

const std::vector<AsyncCopy>& take(int pending) {
    Unseen unseen;
    AsyncCopies& copies = running->thread().copies;
    copies.landed.clear();
    const size_t keep = static_cast<size_t>(pending), total = copies.groups.size();
    const size_t landed = total > keep ? total - keep : 0;
    for (size_t i = 0; i < landed; i++)
        copies.landed.insert(copies.landed.end(), copies.groups[i].begin(), copies.groups[i].end());
    copies.groups.erase(copies.groups.begin(), copies.groups.begin() + static_cast<std::ptrdiff_t>(landed));
    return copies.landed;
}

}  // namespace exl::emulator
