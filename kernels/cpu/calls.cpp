#include "calls.h"

#include "linear.h"
#include "streamed.h"

std::vector<Kind>& kinds() {
    static std::vector<Kind> all; // made by the first of the files that register themselves
    return all;
}

void run_calls(const Call* calls, int count) {
    const std::vector<Kind>& all = kinds();
    for (int i = 0; i < count; i++) all[calls[i].kind].run(calls[i].arguments);
}

const char* layout() {
    static const std::string text = [] {
        std::string out;
        STRUCT(out, Weight, F(data), F(type), F(rows), F(bias), F(streamed), F(source), F(step))
        STRUCT(out, Source, F(file), F(offset), F(nbytes), F(direct), F(step))
        for (const Kind& kind : kinds()) describe(out, kind.name, kind.size, kind.fields);
        return out;
    }();
    return text.c_str();
}
