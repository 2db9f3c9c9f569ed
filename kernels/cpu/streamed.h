// Stacks of matrices that do not stay in memory: a matrix is read from the file, into a slot, when it is chosen.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

// Where the matrices of a stack lie.
struct Source {
    int file;    // an open descriptor
    long offset; // bytes, of the first matrix
    long nbytes; // of each
    int direct;  // whether the descriptor bypasses the page cache: only whole sectors can be read
    long step;   // bytes from a matrix to the next one
};

// Stacks whose matrices of one number are read together, such as an expert's gate and up, and slots for some of them.
// Used through a Turn; in one, matrices may be taken by all threads.
class Streamed {
public:
    struct Slot {
        int number = -1;
        std::atomic<int> pending{0}; // reads that are not done yet
        std::atomic<bool> failed{false};
        bool is_held = false, is_needed = false; // in the turn that has the lock: now, and later
        bool is_ahead = false;                   // read before it was wanted, and not judged yet
        bool is_dropped = false;                 // what is read into it is not wanted after all
    };

    // slots: at least 1; age: how much older a call is than the one before, where an age makes a use count e times less
    // apart: the slots of each source follow each other, as the matrices of a stack do, for those who read them without
    // asking for places; no source may be read directly. Otherwise what is read together lies together.
    Streamed(int count, int slots, const std::vector<Source>& sources, double age, bool apart);
    ~Streamed();
    Streamed(const Streamed&) = delete;
    Streamed& operator=(const Streamed&) = delete;

    // What the same numbers are wanted of next: their reads begin too.
    void followed_by(Streamed* other) { follower_ = other; }

    bool is_ready(int number) const { return slot_of_[number] >= 0 && !slot_[slot_of_[number]].pending; }

    // Whether everything is in memory, and stays there: number i in slot i.
    bool is_whole();

    // How many numbers there are.
    int count() const { return int(slot_of_.size()); }

    // These numbers, each once, are used next: reads of those that are missing begin, if there are slots for all.
    void want(const std::vector<int>& numbers);

    // Whether it pays to predict what the next call uses, of at most `count` numbers.
    bool predicts(int count);

    // The next call is likely to use these numbers, each once: those that are missing are read behind all that are
    // wanted, unless few of those that were expected lately have been used.
    void expect(const std::vector<int>& numbers);

    // A matrix of a number that is held, once it is read; null if that failed.
    const char* wait(int source, int number);

    // That many uses are of numbers that `is_whole` says are there.
    void note_used(int count) { used_ += count; }

    // The slot of a number that is held.
    int slot_of(int number) const { return slot_of_[number]; }

    // Where the slots of a source begin; for sources that lie apart.
    const char* slots_of(int source) const { return memory_ + stretches_[parts_[source].stretch].start; }

    // Uses of numbers, those of them that had to be read, bytes read, nanoseconds waited; uses in calls that were
    // predicted, those of them that were expected; numbers read ahead, those of them that were used.
    void counts(long* out) const;

private:
    friend class Turn;
    friend class Readers;

    // What is read as one: a matrix, or several of one number that lie side by side in the file.
    struct Stretch {
        Source from;
        long start, step; // of its part of the first slot, and from slot to slot; bytes
    };
    // Where the matrices of a source lie.
    struct Part {
        int stretch;
        long offset; // within it, bytes
    };

    void add(const Source& source);
    void lay_out();
    void release();
    void hold(const int* numbers, int count);
    int victim(bool waits);
    void start(int slot, int number, bool ahead);
    void read_ahead(const std::vector<int>& numbers);
    void use(const int* numbers, int count);
    void judge(const std::vector<int>& numbers);
    void settle(const std::vector<int>& numbers);
    void forget(Slot& slot);
    void done(Slot& slot, long nbytes, const std::string& error);
    void check();
    void recover();
    char* place(const Stretch& stretch, int slot) const;

    const int slots_;
    const double age_;
    const bool apart_;
    std::vector<Stretch> stretches_;
    std::vector<Part> parts_; // of each source
    long nbytes_ = 0;         // of the memory
    char* memory_;
    Streamed* follower_ = nullptr;
    std::unique_ptr<Slot[]> slot_;
    std::vector<int> slot_of_;  // of each number, or -1
    std::vector<double> score_; // of each number, as a logarithm that stays while it is not used
    double clock_ = 0;
    std::vector<int> expected_;   // what the next call is likely to use; empty if nothing was predicted
    std::vector<char> is_wanted_; // of each number, while a call is judged
    bool pays_ = true;            // to read ahead
    double worth_;                // the share of expected numbers that were missing, and then used, lately
    int skipped_ = 0;             // calls that were not predicted, since that does not pay
    std::atomic<long> used_{0}, reads_{0}, bytes_{0}, waited_{0};
    std::atomic<long> judged_{0}, foretold_{0}, ahead_{0}, useful_{0};
    std::mutex turns_, reading_; // reading_: of error_, and to wait for slots
    std::condition_variable done_;
    std::string error_;
    std::atomic<bool> is_abandoned_{false}; // a call ended with an error: what it began to read may fail, too
};

// A call's use of some numbers, in portions that fit the slots; the next portion is read while one is used.
class Turn {
public:
    explicit Turn(Streamed& streamed) : streamed_(streamed), lock_(streamed.turns_) {}

    bool is_ready(int number) const { return streamed_.is_ready(number); }

    int slot_of(int number) const { return streamed_.slot_of(number); }

    // Waits for the reads of numbers [first, last) of `begin`. Throws ReadError if one of them failed.
    void finish(int first, int last);

    // numbers: each once; they have to outlive it
    void begin(const std::vector<int>& numbers);

    // numbers [first, last) are held until the next call; false after the last portion. Throws ReadError if a read of
    // the portion before failed.
    bool next(int& first, int& last);

private:
    void hold(int first, int last);

    Streamed& streamed_;
    std::unique_lock<std::mutex> lock_;
    const int* numbers_ = nullptr;
    int count_ = 0, size_ = 0, at_ = 0; // numbers, those of a portion, and where the next one begins
    bool looks_ahead_ = false;
};
