#include "readers.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <thread>

namespace {

constexpr int READERS = 4;    // reads under way at a time
constexpr int MOST_AHEAD = 2; // of them, of what nobody waits for yet

// How bytes are read, as by pread; tests put faults here.
std::atomic<ssize_t (*)(int, void*, size_t, off_t)> read_at{pread};

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

Readers& Readers::all() {
    static Readers* made = new Readers;
    return *made;
}

Readers::Readers() {
    for (int i = 0; i < READERS; i++) std::thread([this] { work(); }).detach();
}

void Readers::add(const Job& job, bool ahead) {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        (ahead ? ahead_ : wanted_).push_back(job);
    }
    wake_.notify_one();
}

void Readers::work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        wake_.wait(lock, [&] { return !wanted_.empty() || (!ahead_.empty() && running_ < MOST_AHEAD); });
        bool ahead = wanted_.empty();
        std::deque<Job>& jobs = ahead ? ahead_ : wanted_;
        Job job = jobs.front();
        jobs.pop_front();
        running_ += ahead;
        lock.unlock();
        job.owner->done(*job.slot, job.nbytes, read_all(job));
        lock.lock();
        running_ -= ahead;
    }
}

extern "C" {

// Reads by another function than pread; null: by pread again.
void ferrum_read_by(ssize_t (*function)(int, void*, size_t, off_t)) { read_at = function ? function : pread; }
}
