// Threads that read parts of files into slots: see streamed.h.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <vector>

#include "streamed.h"

constexpr long SECTOR = 4096; // bytes: what direct reads are made of, and where memory for them begins

inline long whole(long n) { return (n + SECTOR - 1) / SECTOR * SECTOR; }

struct Job {
    int file;
    bool direct;
    long offset, nbytes;
    char* to; // as far beyond a sector's start as offset is, if direct
    Streamed* owner;
    Streamed::Slot* slot;
};

// Never destroyed: at exit the process ends while they sleep.
class Readers {
public:
    static Readers& all();

    // ahead: nobody waits for it yet
    void add(const Job& job, bool ahead);

    // What an owner waits for from now on, of its jobs that have not begun; the others are taken away and returned.
    template <typename F>
    std::vector<Job> settle(const Streamed* owner, const F& is_wanted) {
        std::vector<Job> dropped;
        std::deque<Job> rest;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            for (const Job& job : ahead_)
                if (job.owner != owner)
                    rest.push_back(job);
                else if (is_wanted(*job.slot))
                    wanted_.push_back(job);
                else
                    dropped.push_back(job);
            ahead_.swap(rest);
        }
        wake_.notify_all();
        return dropped;
    }

private:
    Readers();
    void work();

    std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<Job> wanted_, ahead_;
    int running_ = 0; // reads ahead that are under way
};
