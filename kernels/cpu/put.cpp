#include <cstring>

#include "calls.h"

void run(const Put& a) {
    const long *from = a.source_strides, *to = a.to_strides;
    for (int i = 0; i < 2; i++)
        for (int b = 0; b < a.batch; b++)
            for (int h = 0; h < a.heads; h++)
                for (int l = 0; l < a.length; l++)
                    std::memcpy(a.to + i * to[0] + b * to[1] + h * to[2] + (a.at + l) * to[3],
                                a.source + i * from[0] + b * from[1] + h * from[2] + l * from[3], a.row);
}
