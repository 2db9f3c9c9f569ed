#include "streamed.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <new>

#include "calls.h"
#include "errors.h"
#include "readers.h"

namespace {

constexpr long READ = 3 << 19; // bytes of a read at most: larger stretches are shared by the readers
constexpr long SPACE = 65536;  // bytes between two matrices that are read rather than skipped

// Reading ahead begins and ends to pay where such shares of what is read are used; the last RECENT numbers count most.
constexpr double PAYS = 0.45, WASTES = 0.3, RECENT = 32;
constexpr int SKIPS = 8; // where it does not pay, one call of so many is predicted all the same

constexpr long PAGE = 16384; // bytes: a multiple of the pages of every system

} // namespace

Streamed::Streamed(int count, int slots, const std::vector<Source>& sources, double age, bool apart)
    : slots_(std::min(std::max(slots, 1), count)), age_(age), apart_(apart), slot_(new Slot[slots_]),
      slot_of_(count, -1), score_(count, -INFINITY), is_wanted_(count, false), worth_(PAYS) {
    for (const Source& source : sources) add(source);
    lay_out();
    void* memory = mmap(nullptr, size_t(nbytes_), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    madvise(memory, size_t(nbytes_), MADV_HUGEPAGE); // takes fewer steps to find; not everywhere to be had
#endif
    memory_ = (char*)memory;
}

void Streamed::lay_out() {
    if (apart_) {
        for (Stretch& stretch : stretches_) {
            stretch.start = nbytes_, stretch.step = stretch.from.nbytes;
            nbytes_ += (slots_ * stretch.step + PAGE - 1) / PAGE * PAGE;
        }
        return;
    }
    long step = 0;
    for (Stretch& stretch : stretches_) {
        const Source& from = stretch.from;
        bool is_whole = from.offset % SECTOR == 0 && from.step % SECTOR == 0;
        stretch.start = step;
        step += whole(from.nbytes) + (from.direct && !is_whole ? SECTOR : 0);
    }
    for (Stretch& stretch : stretches_) stretch.step = step;
    nbytes_ = slots_ * step;
}

Streamed::~Streamed() {
    settle({});
    std::unique_lock<std::mutex> lock(reading_);
    for (int i = 0; i < slots_; i++) // readers write to the memory
        done_.wait(lock, [&] { return !slot_[i].pending; });
    munmap(memory_, size_t(nbytes_));
}

// Matrices that follow those of the source before, in the same step of the file, are read with them.
void Streamed::add(const Source& source) {
    if (!stretches_.empty() && !apart_) {
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
    stretches_.push_back({source, 0, 0});
}

char* Streamed::place(const Stretch& stretch, int slot) const {
    const Source& from = stretch.from;
    long offset = from.offset + slot_[slot].number * from.step;
    return memory_ + slot * stretch.step + stretch.start + (from.direct ? offset % SECTOR : 0);
}

// A slot that is not held: an empty one, or that of the lowest score among those that are needed least. Those that are
// being read are waited for, or not: then it may be -1.
int Streamed::victim(bool waits) {
    int best = -1, reading = -1;
    auto worth = [&](const Slot& s) { return std::pair(s.is_needed, score_[s.number]); };
    for (int i = 0; i < slots_; i++) {
        const Slot& slot = slot_[i];
        if (slot.is_held) continue;
        if (slot.pending)
            reading = i;
        else if (slot.number < 0 || slot.is_dropped)
            return i;
        else if (best < 0 || worth(slot) < worth(slot_[best]))
            best = i;
    }
    if (best >= 0 || !waits) return best;
    if (reading < 0) throw std::logic_error("more experts are wanted than there are slots");
    std::unique_lock<std::mutex> lock(reading_);
    done_.wait(lock, [&] { return !slot_[reading].pending; });
    return reading;
}

void Streamed::release() {
    for (int i = 0; i < slots_; i++) slot_[i].is_held = false;
}

void Streamed::hold(const int* numbers, int count) {
    for (int i = 0; i < count; i++)
        if (int slot = slot_of_[numbers[i]]; slot >= 0) slot_[slot].is_held = true;
    for (int i = 0; i < count; i++)
        if (slot_of_[numbers[i]] < 0) start(slots_ == this->count() ? numbers[i] : victim(true), numbers[i], false);
}

bool Streamed::is_whole() {
    std::unique_lock<std::mutex> lock(turns_, std::try_to_lock);
    return lock && slots_ == count() && std::all_of(slot_.get(), slot_.get() + slots_, [](const Slot& slot) {
               return slot.number >= 0 && !slot.pending && !slot.failed;
           });
}

void Streamed::start(int slot, int number, bool ahead) {
    Slot& s = slot_[slot];
    forget(s);
    s.number = number, s.is_held = true, s.is_needed = false, s.is_ahead = ahead;
    slot_of_[number] = slot;
    std::vector<Job> jobs;
    for (const Stretch& stretch : stretches_) {
        const Source& from = stretch.from;
        long start = from.offset + number * from.step, stop = start + from.nbytes, before = start % SECTOR;
        long count = (from.nbytes + READ - 1) / READ, size = whole(before + (from.nbytes + count - 1) / count);
        char* to = place(stretch, slot);
        for (long at = start; at < stop;) { // cut between sectors
            long next = std::min(stop, at / SECTOR * SECTOR + size);
            jobs.push_back({from.file, from.direct != 0, at, next - at, to + (at - start), this, &s});
            at = next;
        }
    }
    s.pending = int(jobs.size());
    (ahead ? ahead_ : reads_)++;
    for (const Job& job : jobs) Readers::all().add(job, ahead);
}

// Makes a slot an empty one; what it holds has been read, or failed to be.
void Streamed::forget(Slot& slot) {
    if (slot.number >= 0 && !slot.is_dropped) slot_of_[slot.number] = -1;
    slot.number = -1;
    slot.is_dropped = slot.failed = false;
}

void Streamed::want(const std::vector<int>& numbers) {
    std::lock_guard<std::mutex> lock(turns_);
    int count = int(numbers.size());
    if (count > slots_) return;
    judge(numbers);
    release();
    hold(numbers.data(), count);
    if (follower_) follower_->want(numbers);
}

bool Streamed::predicts(int count) {
    bool fits = slots_ < this->count() && 2 * count <= slots_;
    return fits && (pays_ || ++skipped_ % SKIPS == 0);
}

void Streamed::expect(const std::vector<int>& numbers) {
    {
        std::lock_guard<std::mutex> lock(turns_);
        expected_ = numbers;
        if (pays_) read_ahead(numbers);
    }
    if (pays_ && follower_) {
        std::lock_guard<std::mutex> lock(follower_->turns_);
        follower_->read_ahead(numbers);
    }
}

void Streamed::read_ahead(const std::vector<int>& numbers) {
    release();
    for (int number : numbers)
        if (int slot = slot_of_[number]; slot >= 0) slot_[slot].is_held = true;
    for (int number : numbers) {
        if (slot_of_[number] >= 0) continue;
        int slot = victim(false);
        if (slot < 0) return;
        start(slot, number, true);
    }
}

// Compares what is used with what was expected of this call.
void Streamed::judge(const std::vector<int>& numbers) {
    if (!expected_.empty()) {
        for (int number : numbers) is_wanted_[number] = true;
        for (int number : expected_) {
            foretold_ += is_wanted_[number];
            int slot = slot_of_[number];
            if (slot >= 0 && !slot_[slot].is_ahead) continue; // it was there
            worth_ += (is_wanted_[number] - worth_) / RECENT;
        }
        for (int number : numbers) is_wanted_[number] = false;
        judged_ += long(numbers.size());
        pays_ = worth_ > (pays_ ? WASTES : PAYS);
        expected_.clear();
    }
    settle(numbers);
    recover();
}

// Reads that nobody waited for, as a call failed or never came, are not errors of the call that comes next. Nothing is
// ahead.
void Streamed::recover() {
    bool waits = is_abandoned_.exchange(false);
    std::unique_lock<std::mutex> lock(reading_);
    for (int i = 0; i < slots_; i++) {
        Slot& slot = slot_[i];
        if (waits) done_.wait(lock, [&] { return !slot.pending; });
        if (!slot.pending && slot.failed) forget(slot);
    }
}

// What was read ahead is used, or gone.
void Streamed::settle(const std::vector<int>& numbers) {
    bool any = false;
    for (int i = 0; i < slots_; i++) any = any || slot_[i].is_ahead;
    if (!any) return;
    for (int number : numbers) is_wanted_[number] = true;
    auto is_wanted = [&](const Slot& slot) { return bool(is_wanted_[slot.number]); };
    std::vector<Job> dropped = Readers::all().settle(this, is_wanted);
    for (const Job& job : dropped) {
        if (!job.slot->is_dropped) slot_of_[job.slot->number] = -1;
        job.slot->is_dropped = true;
        done(*job.slot, 0, "");
    }
    for (int i = 0; i < slots_; i++) {
        Slot& slot = slot_[i];
        if (!slot.is_ahead) continue;
        slot.is_ahead = false;
        bool is_used = is_wanted(slot);
        useful_ += is_used, reads_ += is_used, ahead_ -= slot.is_dropped;
        if (!slot.pending && slot.failed) forget(slot); // nobody has waited for it: it is read again
    }
    for (int number : numbers) is_wanted_[number] = false;
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

void Streamed::done(Slot& slot, long nbytes, const std::string& error) {
    std::lock_guard<std::mutex> lock(reading_);
    bytes_ += nbytes;
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
        bool is_used = slot.is_held && !slot.is_dropped && !slot.is_ahead;
        forget(slot);
        if (!is_used) continue;
        std::lock_guard<std::mutex> lock(reading_);
        error = error_;
    }
    if (error.empty()) return;
    is_abandoned_ = true;
    if (follower_) follower_->is_abandoned_ = true;
    throw ReadError(error);
}

void Streamed::counts(long* out) const {
    long found[] = {used_, reads_, bytes_, waited_, judged_, foretold_, ahead_, useful_};
    std::copy(std::begin(found), std::end(found), out);
}

void Turn::begin(const std::vector<int>& numbers) {
    int count = int(numbers.size()), slots = streamed_.slots_;
    numbers_ = numbers.data(), count_ = count;
    size_ = count <= slots ? count : std::max(1, slots / 2);
    looks_ahead_ = size_ < count && 2 * size_ <= slots;
    streamed_.judge(numbers);
    streamed_.release();
    for (int i = 0; i < slots; i++) streamed_.slot_[i].is_needed = false;
    for (int number : numbers)
        if (int slot = streamed_.slot_of_[number]; slot >= 0) streamed_.slot_[slot].is_needed = true;
    streamed_.use(numbers_, count);
    hold(0, size_);
    if (streamed_.follower_) streamed_.follower_->want(numbers);
}

void Turn::finish(int first, int last) {
    for (int i = first; i < last; i++) streamed_.wait(0, numbers_[i]);
    streamed_.check();
}

void Turn::hold(int first, int last) { streamed_.hold(numbers_ + first, last - first); }

bool Turn::next(int& first, int& last) {
    if (at_) { // the portion before is done
        streamed_.check();
        streamed_.release();
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
Streamed* ferrum_streamed(int count, int slots, int parts, const Source* sources, double age, int apart) {
    try {
        return new Streamed(count, slots, std::vector<Source>(sources, sources + parts), age, apart != 0);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

void ferrum_streamed_follow(Streamed* first, Streamed* second) { first->followed_by(second); }

int ferrum_streamed_is_whole(Streamed* streamed) { return streamed->is_whole(); }

void ferrum_streamed_note_used(Streamed* streamed, int count) { streamed->note_used(count); }

const void* ferrum_streamed_slots(const Streamed* streamed, int source) { return streamed->slots_of(source); }

void ferrum_streamed_free(Streamed* streamed) { delete streamed; }

void ferrum_streamed_counts(const Streamed* streamed, long* out) { streamed->counts(out); }
}
