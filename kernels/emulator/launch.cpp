#include "emulator/launch.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>

#include "emulator/faults.h"
#include "emulator/sanitizer.h"
#include "emulator/stock.h"

namespace exl::emulator {

namespace {

std::mutex stock_lock;
std::vector<std::unique_ptr<Thread>> stock;
char start_token, end_token;

constexpr uint64_t most_blocks = 0x7fffffff, most_blocks_y = 65535;

std::string check(const Launch& launch, const Limits& limits) {
    const dim3 grid = launch.grid, block = launch.block;
    const auto text = [](dim3 size) {
        return "(" + std::to_string(size.x) + ", " + std::to_string(size.y) + ", " + std::to_string(size.z) + ")";
    };
    if (block.y != 1 || block.z != 1 || block.x == 0 || block.x % group_lanes != 0 || block.x > limits.threads)
        return "block " + text(block) + ": expected (n, 1, 1) with n a multiple of 32, at most " +
               std::to_string(limits.threads);
    if (!grid.x || !grid.y || !grid.z || grid.x > most_blocks || grid.y > most_blocks_y || grid.z > most_blocks_y)
        return "grid " + text(grid) + ": expected at least 1 and at most 2147483647, 65535, 65535 blocks";
    if (launch.shared_bytes > limits.shared_bytes)
        return std::to_string(launch.shared_bytes) + " bytes of dynamic shared memory, the device has " +
               std::to_string(limits.shared_bytes) + " for a block";
    return "";
}

std::vector<uint64_t> block_order(uint64_t count, const LaunchOptions& options) {
    std::vector<uint64_t> numbers(count);
    std::iota(numbers.begin(), numbers.end(), 0);
    if (options.order == Order::reverse) std::reverse(numbers.begin(), numbers.end());
    if (options.order == Order::random) {
        std::mt19937_64 random(options.seed);
        std::shuffle(numbers.begin(), numbers.end(), random);
    }
    return numbers;
}

class Run {
 public:
    Run(const Launch& launch, const Limits& limits, const LaunchOptions& options)
        : launch_(launch),
          limits_(limits),
          options_(options),
          numbers_(block_order(uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z, options)) {}

    // One worker: takes blocks until there are none or one has failed.
    void work() {
        release(&start_token);  // what the making of this OS thread wrote comes before its blocks
        Unseen unseen;
        FaultHandler handler;
        Block block(launch_, limits_, options_.order, options_.seed);
        for (uint64_t i; !failed_ && (i = next_++) < numbers_.size();) {
            const uint64_t n = numbers_[i], x = launch_.grid.x, y = launch_.grid.y;
            if (!block.run({uint32_t(n % x), uint32_t(n / x % y), uint32_t(n / x / y)})) report(block.failure());
        }
    }

    std::string run_all() {
        const auto wanted = options_.workers ? options_.workers : int(std::thread::hardware_concurrency());
        const auto workers = int(std::min<uint64_t>(uint64_t(std::max(wanted, 1)), numbers_.size()));
        std::vector<std::thread> others;
        for (int i = 1; i < workers; i++) others.emplace_back([this] { work(); });
        work();
        for (std::thread& other : others) other.join();
        return failure_;
    }

 private:
    void report(const std::string& failure) {
        const std::lock_guard<std::mutex> hold(lock_);
        if (failure_.empty()) failure_ = failure;
        failed_ = true;
    }

    const Launch& launch_;
    const Limits& limits_;
    const LaunchOptions& options_;
    const std::vector<uint64_t> numbers_;
    std::atomic<uint64_t> next_{0};
    std::atomic<bool> failed_{false};
    std::mutex lock_;
    std::string failure_;
};

}  // namespace

void* launch_start_token() { return &start_token; }
void* launch_end_token() { return &end_token; }

std::vector<std::unique_ptr<Thread>> take_threads(int count) {
    const Unseen unseen;
    const std::lock_guard<std::mutex> hold(stock_lock);
    std::vector<std::unique_ptr<Thread>> threads;
    while (int(threads.size()) < count && !stock.empty()) {
        threads.push_back(std::move(stock.back()));
        stock.pop_back();
    }
    while (int(threads.size()) < count) threads.push_back(std::make_unique<Thread>());
    return threads;
}

void give_threads(std::vector<std::unique_ptr<Thread>> threads) {
    const Unseen unseen;
    const std::lock_guard<std::mutex> hold(stock_lock);
    for (auto& thread : threads) stock.push_back(std::move(thread));
}

std::string run(const Launch& launch, const Limits& limits, const LaunchOptions& options) {
    std::string failure = check(launch, limits);
    if (failure.empty()) {
        release(&start_token);
        failure = Run(launch, limits, options).run_all();
        acquire(&end_token);
    }
    return failure.empty() ? "" : std::string("kernel ") + launch.kernel + ": " + failure;
}

}  // namespace exl::emulator
