/* The picture: time over size, both logarithmic, one line for every communicator, collective, type and op. */
#define _GNU_SOURCE
#include "report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { WIDTH = 960, HEIGHT = 600, LEFT = 86, TOP = 84, BOTTOM = 72, LEGEND = 236, MAX_LINES = 24 };

static const char *const COLOURS[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222", "#8a6d3b"};
static const char *const DASHES[] = {"none", "7 4", "2 3"};
#define COLOUR_COUNT (sizeof COLOURS / sizeof COLOURS[0])

typedef struct axes {
    double low_x, high_x, low_y, high_y; /* logarithms: base 2 of bytes, base 10 of microseconds */
} axes_t;

/* The figure that is drawn: one place for all lines, so that they compare. */
static const perf_figure_t *drawn(const perf_row_t *row, int in_place) { return in_place ? &row->in : &row->out; }

static int is_drawn(const perf_row_t *row, int in_place) {
    const perf_figure_t *figure = drawn(row, in_place);
    return row->bytes > 0 && figure->state == PERF_MEASURED && figure->us > 0;
}

static int same_line(const perf_row_t *a, const perf_row_t *b) {
    return strcmp(a->run, b->run) == 0 && a->collective == b->collective && a->type == b->type && strcmp(a->op, b->op) == 0;
}

static double x_of(const axes_t *axes, double bytes) {
    return LEFT + (log2(bytes) - axes->low_x) / (axes->high_x - axes->low_x) * (WIDTH - LEFT - LEGEND);
}

static double y_of(const axes_t *axes, double us) {
    return HEIGHT - BOTTOM - (log10(us) - axes->low_y) / (axes->high_y - axes->low_y) * (HEIGHT - TOP - BOTTOM);
}

static void text(FILE *to, double x, double y, const char *style, const char *words) {
    fprintf(to, "<text x=\"%.1f\" y=\"%.1f\" %s>", x, y, style);
    for (; *words != '\0'; words++) {
        if (*words == '<') fputs("&lt;", to);
        else if (*words == '&') fputs("&amp;", to);
        else fputc(*words, to);
    }
    fputs("</text>\n", to);
}

static void bytes_text(double bytes, char *words, size_t capacity) {
    static const char *const UNITS[] = {"B", "KiB", "MiB", "GiB"};
    int unit = 0;
    for (; bytes >= 1024 && unit < 3; unit++) bytes /= 1024;
    snprintf(words, capacity, "%.3g %s", bytes, UNITS[unit]);
}

static void time_text(double us, char *words, size_t capacity) {
    if (us >= 1e6) snprintf(words, capacity, "%.4g s", us / 1e6);
    else if (us >= 1e3) snprintf(words, capacity, "%.4g ms", us / 1e3);
    else if (us >= 1) snprintf(words, capacity, "%.4g µs", us);
    else snprintf(words, capacity, "%.4g ns", us * 1e3);
}

static axes_t find_axes(const perf_row_t *rows, size_t count, int in_place) {
    axes_t axes = {1e9, -1e9, 1e9, -1e9};
    for (size_t i = 0; i < count; i++) {
        if (!is_drawn(&rows[i], in_place)) continue;
        const double x = log2((double)rows[i].bytes), y = log10(drawn(&rows[i], in_place)->us);
        axes.low_x = fmin(axes.low_x, x);
        axes.high_x = fmax(axes.high_x, x);
        axes.low_y = fmin(axes.low_y, y);
        axes.high_y = fmax(axes.high_y, y);
    }
    if (axes.low_x > axes.high_x) axes = (axes_t){0, 1, 0, 1}; /* nothing to draw */
    axes.low_y = floor(axes.low_y - 0.05);
    axes.high_y = fmax(ceil(axes.high_y + 0.05), axes.low_y + 1);
    axes.low_x -= 0.5;
    axes.high_x += 0.5;
    return axes;
}

static void draw_axes(FILE *to, const axes_t *axes) {
    char words[128];
    const double right = WIDTH - LEGEND, floor_y = HEIGHT - BOTTOM;
    for (int decade = (int)axes->low_y; decade <= (int)axes->high_y; decade++) {
        for (int digit = 1; digit < 10 && (digit == 1 || decade < (int)axes->high_y); digit++) {
            const double y = y_of(axes, digit * pow(10, decade));
            fprintf(to, "<line x1=\"%d\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n", LEFT, y, right, y, digit == 1 ? "#bbb" : "#eee");
        }
        time_text(pow(10, decade), words, sizeof words);
        text(to, LEFT - 10, y_of(axes, pow(10, decade)) + 5, "text-anchor=\"end\"", words);
    }
    const int span = (int)(axes->high_x - axes->low_x), step = span > 24 ? 4 : span > 12 ? 2 : 1;
    for (int power = (int)ceil(axes->low_x); power <= axes->high_x; power++) {
        const double x = x_of(axes, pow(2, power));
        if ((power - (int)ceil(axes->low_x)) % step != 0) continue;
        fprintf(to, "<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/>\n", x, TOP, x, floor_y + 5);
        bytes_text(pow(2, power), words, sizeof words);
        text(to, x, floor_y + 22, "text-anchor=\"middle\"", words);
    }
    fprintf(to, "<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%.1f\" fill=\"none\" stroke=\"#444\"/>\n", LEFT, TOP, right - LEFT, floor_y - TOP);
    text(to, (LEFT + right) / 2, HEIGHT - 20, "text-anchor=\"middle\" font-size=\"15\"", "size");
    snprintf(words, sizeof words, "transform=\"rotate(-90 20 %d)\" text-anchor=\"middle\" font-size=\"15\"", (TOP + HEIGHT - BOTTOM) / 2);
    text(to, 20, (TOP + HEIGHT - BOTTOM) / 2, words, "time of one call");
}

static void draw_line(FILE *to, const axes_t *axes, const perf_row_t *rows, size_t count, const perf_row_t *line, size_t index, int in_place) {
    const char *colour = COLOURS[index % COLOUR_COUNT], *dash = DASHES[index / COLOUR_COUNT % 3];
    char size[32], time[32];
    fprintf(to, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2.2\" stroke-linejoin=\"round\" stroke-dasharray=\"%s\" points=\"", colour, dash);
    for (size_t i = 0; i < count; i++) {
        if (!same_line(&rows[i], line) || !is_drawn(&rows[i], in_place)) continue;
        fprintf(to, "%.1f,%.1f ", x_of(axes, (double)rows[i].bytes), y_of(axes, drawn(&rows[i], in_place)->us));
    }
    fputs("\"/>\n", to);
    for (size_t i = 0; i < count; i++) {
        if (!same_line(&rows[i], line) || !is_drawn(&rows[i], in_place)) continue;
        bytes_text((double)rows[i].bytes, size, sizeof size);
        time_text(drawn(&rows[i], in_place)->us, time, sizeof time);
        fprintf(to, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.6\" fill=\"%s\" stroke=\"#fff\"><title>%s: %s</title></circle>\n",
                x_of(axes, (double)rows[i].bytes), y_of(axes, drawn(&rows[i], in_place)->us), colour, size, time);
    }
}

/* Whether any row differs from the first in what `field` is. */
#define VARIES(field) varies_##field(rows, count)
static int varies_collective(const perf_row_t *rows, size_t count) {
    for (size_t i = 1; i < count; i++) {
        if (rows[i].collective != rows[0].collective) return 1;
    }
    return 0;
}
static int varies_type(const perf_row_t *rows, size_t count) {
    for (size_t i = 1; i < count; i++) {
        if (rows[i].type != rows[0].type) return 1;
    }
    return 0;
}
static int varies_op(const perf_row_t *rows, size_t count) {
    for (size_t i = 1; i < count; i++) {
        if (strcmp(rows[i].op, rows[0].op) != 0) return 1;
    }
    return 0;
}

static void draw(FILE *to, const perf_library_t *library, const perf_options_t *options, const perf_row_t *rows, size_t count) {
    int in_place = 1;
    for (size_t i = 0; i < count; i++) in_place = in_place && rows[i].out.state != PERF_MEASURED;
    const axes_t axes = find_axes(rows, count, in_place);
    const int collectives = VARIES(collective), types = VARIES(type), ops = VARIES(op);
    char words[256], touch[64] = "";
    fprintf(to, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" "
                "font-family=\"DejaVu Sans, Verdana, Arial, sans-serif\" font-size=\"13\" fill=\"#222\">\n",
            WIDTH, HEIGHT, WIDTH, HEIGHT);
    fputs("<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n", to);
    snprintf(words, sizeof words, "%s%s%s%s%s, %d ranks", count == 0 ? "nothing measured" : collectives ? "collectives" : rows[0].collective->name,
             count == 0 || ops || strcmp(rows[0].op, "none") == 0 ? "" : " ", count == 0 || ops || strcmp(rows[0].op, "none") == 0 ? "" : rows[0].op,
             count == 0 || types ? "" : ", ", count == 0 || types ? "" : rows[0].type->name, library->size);
    text(to, LEFT, 34, "font-size=\"20\" font-weight=\"bold\"", words);
    if (options->touch_from != PERF_NEVER) {
        bytes_text((double)options->touch_from, words, sizeof words);
        snprintf(touch, sizeof touch, ", touched from %.40s", words);
    }
    snprintf(words, sizeof words, "%s, %s%s%s; median of the slowest rank", library->name, in_place ? "in place" : "out of place",
             options->registered ? ", registered buffers" : "", touch);
    text(to, LEFT, 58, "fill=\"#555\"", words);
    draw_axes(to, &axes);
    size_t lines = 0;
    for (size_t i = 0; i < count && lines < MAX_LINES; i++) {
        int known = !is_drawn(&rows[i], in_place);
        for (size_t j = 0; j < i && !known; j++) known = is_drawn(&rows[j], in_place) && same_line(&rows[i], &rows[j]);
        if (known) continue;
        const double y = TOP + 12 + 22 * (double)lines;
        draw_line(to, &axes, rows, count, &rows[i], lines, in_place);
        fprintf(to, "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"%s\" stroke-width=\"2.6\" stroke-dasharray=\"%s\"/>\n",
                WIDTH - LEGEND + 14, y, WIDTH - LEGEND + 40, y, COLOURS[lines % COLOUR_COUNT], DASHES[lines / COLOUR_COUNT % 3]);
        snprintf(words, sizeof words, "%s%s%s%s%s%s%s", rows[i].run, collectives ? " " : "", collectives ? rows[i].collective->name : "",
                 types ? " " : "", types ? rows[i].type->name : "", ops ? " " : "", ops ? rows[i].op : "");
        text(to, WIDTH - LEGEND + 48, y + 5, "", words);
        lines++;
    }
    fputs("</svg>\n", to);
}

int perf_plot(const char *path, const perf_library_t *library, const perf_options_t *options, const perf_row_t *rows, size_t count) {
    FILE *to = fopen(path, "w");
    if (to == NULL) return -1;
    draw(to, library, options, rows, count);
    const int failed = ferror(to) != 0;
    return fclose(to) != 0 || failed ? -1 : 0;
}
