// Executes a tape with N threads, the caller included.
//
// One 64-bit ticket says which instruction is current (high half: a running number) and which of its items is next (low
// half). Threads claim ranges of items by
// compare-and-swap; whoever finishes the last item publishes the next instruction. There is no barrier of threads: a
// thread that the operating system took away holds up the others only while it holds a claim. Threads that find nothing
// to claim spin, then yield; a millisecond after a tape they sleep.
#include "pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "ops.h"

namespace {

// A plain call, for loading: args 0 work, 1 context, 2 number of items.
int64_t call_count(const Instruction& in, const Dims&) { return in.args[2]; }
void call(const Instruction& in, const Dims&, int64_t begin, int64_t end, Scratch&) {
    reinterpret_cast<Work>(in.args[0])(pointer<void>(in, 1), begin, end);
}
const OpKernel CALL = {call_count, call, claim_between<1, 16>};

const OpKernel* kernel_of(int32_t op) {
    static const OpKernel* const table[NUM_OPS] = {&EMBED,          &RMS_NORM,  &ADD_RMS_NORM,    &LINEAR,
                                                   &ROPE_TABLE,     &ROPE_KV_WRITE, &ATTENTION_PLAN, &ATTENTION,
                                                   &ATTENTION_MERGE, &SILU_MUL, &SELECT_ROWS,     &ARGMAX,
                                                   &QUANTIZE,      &CALL};
    return table[op];
}

constexpr int SPINS_BEFORE_YIELD = 256;
constexpr auto IDLE_BEFORE_SLEEP = std::chrono::microseconds(1000);

// A ticket: instruction number in the high half, next unclaimed item in the low half.
constexpr uint64_t ticket_of(uint32_t sequence) { return uint64_t(sequence) << 32; }
constexpr uint64_t CLOSED = 0xffffffff;  // a next item that no instruction has

void relax() { __builtin_ia32_pause(); }

// Spins politely until `changed` says so or patience ends; false when it ended.
class Patience {
public:
    void wait() {
        if (++spins_ % SPINS_BEFORE_YIELD == 0) std::this_thread::yield();
        else relax();
    }
    bool long_idle() {
        if (spins_ % SPINS_BEFORE_YIELD) return false;
        const auto now = std::chrono::steady_clock::now();
        if (spins_ == SPINS_BEFORE_YIELD) since_ = now;
        return now - since_ > IDLE_BEFORE_SLEEP;
    }

private:
    int64_t spins_ = 0;
    std::chrono::steady_clock::time_point since_;
};

}  // namespace

class Pool {
public:
    explicit Pool(int threads) : threads_(threads) {
        for (int i = 0; i < threads; i++)
            scratch_.push_back({static_cast<char*>(aligned_alloc(64, SCRATCH_BYTES)), SCRATCH_BYTES});
        for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { serve(scratch_[size_t(i)]); });
    }

    ~Pool() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stopping_ = true;
        }
        wake_.notify_all();
        for (auto& worker : workers_) worker.join();
        for (auto& scratch : scratch_) free(scratch.base);
    }

    void run(const Instruction* tape, int64_t size, const Dims& dims) {
        tape_end_ = tape + size;
        dims_ = dims;
        {
            std::lock_guard<std::mutex> lock(mutex_);  // a worker about to sleep sees this or is woken below
            running_.store(true, std::memory_order_relaxed);
        }
        publish(tape);
        if (sleepers_.load(std::memory_order_relaxed)) wake_.notify_all();
        Patience patience;
        while (running_.load(std::memory_order_acquire)) {
            if (work(scratch_[0])) patience = Patience();
            else patience.wait();
        }
    }

    int threads() const { return threads_; }

private:
    // What a ticket number stands for. Two slots alternate, so that a thread that still holds the previous number never
    // sees its values change under it; by the next reuse of a slot that thread's number is stale and claims nothing.
    struct Current {
        std::atomic<const Instruction*> instruction{nullptr};
        std::atomic<int64_t> total{0}, least{1}, most{1};
    };

    // Makes the first instruction from `in` on that has items the current one, or ends the run.
    void publish(const Instruction* in) {
        int64_t total = 0;
        for (; in != tape_end_; in++) {
            total = kernel_of(in->op)->count(*in, dims_);
            if (total > 0) break;
        }
        const bool ended = in == tape_end_;
        const uint32_t number = uint32_t(ticket_.load(std::memory_order_relaxed) >> 32) + 1;
        Current& next = current_[number % 2];
        next.instruction.store(in, std::memory_order_relaxed);
        next.total.store(ended ? 0 : total, std::memory_order_relaxed);
        const Claim claim = ended ? Claim{1, 1} : kernel_of(in->op)->claim(*in, dims_);
        next.least.store(claim.least, std::memory_order_relaxed);
        next.most.store(claim.most, std::memory_order_relaxed);
        done_.store(0, std::memory_order_relaxed);
        ticket_.store(uint64_t(number) << 32, std::memory_order_release);
        if (ended) running_.store(false, std::memory_order_release);
    }

    // Claims and runs one range of items; false if there was none.
    bool work(Scratch& scratch) {
        uint64_t ticket = ticket_.load(std::memory_order_acquire);
        const Current& current = current_[uint32_t(ticket >> 32) % 2];
        const int64_t total = current.total.load(std::memory_order_relaxed), begin = int64_t(uint32_t(ticket));
        if (begin >= total) return false;
        const int64_t least = current.least.load(std::memory_order_relaxed), most = current.most.load(std::memory_order_relaxed);
        const int64_t share = (total - begin) / (2 * threads_), fair = share - share % least;
        const int64_t size = fair < least ? least : (fair < most ? fair : most);
        const int64_t end = begin + size < total ? begin + size : total;
        const Instruction* in = current.instruction.load(std::memory_order_relaxed);
        if (!ticket_.compare_exchange_strong(ticket, ticket + uint64_t(end - begin), std::memory_order_acq_rel))
            return true;  // somebody else was faster: look again
        kernel_of(in->op)->run(*in, dims_, begin, end, scratch);
        if (done_.fetch_add(end - begin, std::memory_order_acq_rel) + (end - begin) == total) publish(in + 1);
        return true;
    }

    void serve(Scratch& scratch) {
        Patience patience;
        while (!stopping_.load(std::memory_order_relaxed)) {
            if (work(scratch)) {
                patience = Patience();
                continue;
            }
            patience.wait();
            if (!running_.load(std::memory_order_relaxed) && patience.long_idle()) {
                sleep();
                patience = Patience();
            }
        }
    }

    void sleep() {
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_++;
        wake_.wait(lock, [this] { return stopping_ || running_; });
        sleepers_--;
    }

    const int threads_;
    std::vector<Scratch> scratch_;
    std::vector<std::thread> workers_;
    const Instruction* tape_end_ = nullptr;
    Dims dims_ = {};
    Current current_[2];
    alignas(64) std::atomic<uint64_t> ticket_{0};
    alignas(64) std::atomic<int64_t> done_{0};
    alignas(64) std::atomic<bool> running_{false}, stopping_{false};
    std::atomic<int> sleepers_{0};
    std::mutex mutex_;
    std::condition_variable wake_;
};

void parallel_for(Pool& pool, int64_t count, Work work, void* context) {
    Instruction in = {};
    in.op = OP_CALL;
    in.args[0] = reinterpret_cast<int64_t>(work);
    in.args[1] = reinterpret_cast<int64_t>(context);
    in.args[2] = count;
    pool.run(&in, 1, Dims{});
}

extern "C" Pool* phloem_pool_create(int threads) { return new (std::nothrow) Pool(threads); }
extern "C" void phloem_pool_destroy(Pool* pool) { delete pool; }
extern "C" void phloem_run(Pool* pool, const Instruction* tape, int64_t size, const Dims* dims) {
    pool->run(tape, size, *dims);
}
