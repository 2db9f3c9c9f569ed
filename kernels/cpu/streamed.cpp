#include "streamed.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <new>
#include <thread>

#include "calls.h"
#include "errors.h"

namespace {

constexpr long SECTOR = 4096;  // bytes: what direct reads are made of, and where memory for them begins
constexpr int READERS = 4;     // reads under way at a time
constexpr long READ = 3 << 19; // bytes of a read at most: larger stretches are shared by the readers
constexpr long SPACE = 65536;  // bytes between two matrices that are read rather than skipped

long whole(long n) { return (n + SECTOR - 1) / SECTOR * SECTOR; }

// How bytes are read, as by pread; tests put faults here.
std::atomic<ssize_t (*)(int, void*, size_t, off_t)> read_at{pread};

struct Job {
    int file;
    bool direct;
    long offset, nbytes;
    char* to; // as far beyond a sector's start as offset is, if direct
    Streamed* owner;
    Streamed::Slot* slot;
};

// Why bytes could not be read; empty if all were.
std::string read_all(const Job& job) {
    long ahead = job.direct ? job.offset % SECTOR : 0;
    long at = job.offset - ahead, end = job.offset + job.nbytes;
    long stop = job.direct ? whole(end) : end;
    char* to = job.to - ahead;
    while (at < end) {
        ssize_t n = read_at.load()(job.file, to, size_t(stop - at), at);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            std::string why = n ? strerror(errno) : "the file ends there";
            return "reading " + std::to_string(end - at) + " bytes of an expert at byte " + std::to_string(at) + ": " +
                   why;
        }
        at += n, to += n;
    }
    return "";
}

} // namespace

// Threads that read. Never destroyed: at exit the process ends while they sleep.
class Readers {
public:
    static Readers& all() {
        static Readers* made = new Readers;
        return *made;
    }

    void add(const Job& job) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            jobs_.push_back(job);
        }
        wake_.notify_one();
    }

private:
    Readers() {
        for (int i = 0; i < READERS; i++) std::thread([this] { work(); }).detach();
    }

    void work() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return !jobs_.empty(); });
            Job job = jobs_.front();
            jobs_.pop_front();
            lock.unlock();
            job.owner->done(*job.slot, read_all(job));
            lock.lock();
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<Job> jobs_;
};

Streamed::Streamed(int count, int slots, const std::vector<Source>& sources, double age)
    : slots_(std::min(std::max(slots, 1), count)), age_(age), slot_(new Slot[slots_]), slot_of_(count, -1),
      score_(count, -INFINITY) {
    for (const Source& source : sources) add(source);
    for (Stretch& stretch : stretches_) {
        const Source& from = stretch.from;
        bool is_whole = from.offset % SECTOR == 0 && from.step % SECTOR == 0;
        stretch.start = stride_;
        stride_ += whole(from.nbytes) + (from.direct && !is_whole ? SECTOR : 0);
    }
    void* memory = mmap(nullptr, size_t(stride_ * slots_), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    madvise(memory, size_t(stride_ * slots_), MADV_HUGEPAGE); // takes fewer steps to find; not everywhere to be had
#endif
    memory_ = (char*)memory;
}

Streamed::~Streamed() {
    std::unique_lock<std::mutex> lock(reading_);
    for (int i = 0; i < slots_; i++) // readers write to the memory
        done_.wait(lock, [&] { return !slot_[i].pending; });
    munmap(memory_, size_t(stride_ * slots_));
}

// Matrices that follow those of the source before, in the same step of the file, are read with them.
void Streamed::add(const Source& source) {
    if (!stretches_.empty()) {
        Source& last = stretches_.back().from;
        long within = source.offset - last.offset, space = within - last.nbytes;
        bool is_near = space >= 0 && space < SPACE && within + source.nbytes <= last.step;
        if (is_near && source.file == last.file && source.step == last.step) {
            parts_.push_back({int(stretches_.size()) - 1, within});
            last.nbytes = within + source.nbytes;
            return;
        }
    }
    parts_.push_back({int(stretches_.size()), 0});
    stretches_.push_back({source, 0});
}

char* Streamed::place(const Stretch& stretch, int slot) const {
    const Source& from = stretch.from;
    long offset = from.offset + slot_[slot].number * from.step;
    return memory_ + slot * stride_ + stretch.start + (from.direct ? offset % SECTOR : 0);
}

// A slot that is not held: an empty one, or that of the lowest score among those that are needed least.
int Streamed::victim() {
    int best = -1, reading = -1;
    auto worth = [&](const Slot& s) { return std::pair(s.is_needed, score_[s.number]); };
    for (int i = 0; i < slots_; i++) {
        const Slot& slot = slot_[i];
        if (slot.is_held) continue;
        if (slot.pending)
            reading = i;
        else if (slot.number < 0)
            return i;
        else if (best < 0 || worth(slot) < worth(slot_[best]))
            best = i;
    }
    if (best >= 0) return best;
    if (reading < 0) throw std::logic_error("more experts are wanted than there are slots");
    std::unique_lock<std::mutex> lock(reading_);
    done_.wait(lock, [&] { return !slot_[reading].pending; });
    return reading;
}

void Streamed::hold(const int* numbers, int count) {
    for (int i = 0; i < count; i++)
        if (int slot = slot_of_[numbers[i]]; slot >= 0) slot_[slot].is_held = true;
    for (int i = 0; i < count; i++)
        if (slot_of_[numbers[i]] < 0) start(victim(), numbers[i]);
}

void Streamed::start(int slot, int number) {
    Slot& s = slot_[slot];
    if (s.number >= 0) slot_of_[s.number] = -1;
    s.number = number, s.is_held = true, s.is_needed = s.failed = false;
    slot_of_[number] = slot;
    std::vector<Job> jobs;
    for (const Stretch& stretch : stretches_) {
        const Source& from = stretch.from;
        bytes_ += from.nbytes;
        long start = from.offset + number * from.step, stop = start + from.nbytes, ahead = start % SECTOR;
        long count = (from.nbytes + READ - 1) / READ, size = whole(ahead + (from.nbytes + count - 1) / count);
        char* to = place(stretch, slot);
        for (long at = start; at < stop;) { // cut between sectors
            long next = std::min(stop, at / SECTOR * SECTOR + size);
            jobs.push_back({from.file, from.direct != 0, at, next - at, to + (at - start), this, &s});
            at = next;
        }
    }
    s.pending = int(jobs.size());
    reads_++;
    for (const Job& job : jobs) Readers::all().add(job);
}

// Scores are logarithms of sums of exp(clock): a use an age ago counts e times less than one now.
void Streamed::use(const int* numbers, int count) {
    clock_ += age_;
    for (int i = 0; i < count; i++) {
        double& score = score_[numbers[i]];
        double high = std::max(score, clock_), low = std::min(score, clock_);
        score = high + std::log1p(std::exp(low - high));
    }
    used_ += count;
}

void Streamed::done(Slot& slot, const std::string& error) {
    std::lock_guard<std::mutex> lock(reading_);
    if (!error.empty()) slot.failed = true, error_ = error;
    slot.pending--;
    done_.notify_all();
}

const char* Streamed::wait(int source, int number) {
    int at = slot_of_[number];
    Slot& slot = slot_[at];
    if (slot.pending) {
        auto start = std::chrono::steady_clock::now();
        std::unique_lock<std::mutex> lock(reading_);
        done_.wait(lock, [&] { return !slot.pending; });
        waited_ += std::chrono::nanoseconds(std::chrono::steady_clock::now() - start).count();
    }
    if (slot.failed) return nullptr;
    const Part& part = parts_[source];
    return place(stretches_[part.stretch], at) + part.offset;
}

// Frees the slots whose reads have failed. Throws ReadError if there are any.
void Streamed::check() {
    std::string error;
    for (int i = 0; i < slots_; i++) {
        Slot& slot = slot_[i];
        if (slot.pending || !slot.failed) continue;
        slot_of_[slot.number] = -1;
        slot.number = -1;
        slot.failed = false;
        std::lock_guard<std::mutex> lock(reading_);
        error = error_;
    }
    if (!error.empty()) throw ReadError(error);
}

void Streamed::counts(long* out) const { out[0] = used_, out[1] = reads_, out[2] = bytes_, out[3] = waited_; }

void Turn::begin(const std::vector<int>& numbers) {
    int count = int(numbers.size()), slots = streamed_.slots_;
    numbers_ = numbers.data(), count_ = count;
    size_ = count <= slots ? count : std::max(1, slots / 2);
    looks_ahead_ = size_ < count && 2 * size_ <= slots;
    for (int i = 0; i < slots; i++) streamed_.slot_[i].is_held = streamed_.slot_[i].is_needed = false;
    for (int number : numbers)
        if (int slot = streamed_.slot_of_[number]; slot >= 0) streamed_.slot_[slot].is_needed = true;
    streamed_.use(numbers_, count);
    hold(0, size_);
    Streamed* other = streamed_.follower_;
    if (other && count <= other->slots_) {
        std::lock_guard<std::mutex> lock(other->turns_);
        for (int i = 0; i < other->slots_; i++) other->slot_[i].is_held = false;
        other->hold(numbers_, count);
    }
}

void Turn::hold(int first, int last) { streamed_.hold(numbers_ + first, last - first); }

bool Turn::next(int& first, int& last) {
    if (at_) { // the portion before is done
        streamed_.check();
        for (int i = 0; i < streamed_.slots_; i++) streamed_.slot_[i].is_held = false;
        for (int i = at_ - 1; i >= std::max(0, at_ - size_); i--)
            streamed_.slot_[streamed_.slot_of_[numbers_[i]]].is_needed = false;
    }
    first = at_, last = at_ = std::min(at_ + size_, count_);
    if (first == count_) return false;
    hold(first, last);
    if (looks_ahead_ && last < count_) hold(last, std::min(last + size_, count_));
    return true;
}

extern "C" {

// See Streamed; null if there is no memory. sources: `parts` of them.
Streamed* ferrum_streamed(int count, int slots, int parts, const Source* sources, double age) {
    try {
        return new Streamed(count, slots, std::vector<Source>(sources, sources + parts), age);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

void ferrum_streamed_follow(Streamed* first, Streamed* second) { first->followed_by(second); }

void ferrum_streamed_free(Streamed* streamed) { delete streamed; }

void ferrum_streamed_counts(const Streamed* streamed, long* out) { streamed->counts(out); }

// Reads by another function than pread; null: by pread again.
void ferrum_read_by(ssize_t (*function)(int, void*, size_t, off_t)) { read_at = function ? function : pread; }
}
