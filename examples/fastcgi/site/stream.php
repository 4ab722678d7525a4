<?php
// Numbered lines, each sent when it is made.
declare(strict_types=1);

header('Content-Type: text/plain; charset=utf-8');
header('Cache-Control: no-store');
while (ob_get_level()) {
    ob_end_flush(); // php.ini's output_buffering would keep the first 4096 bytes
}
for ($number = 1; $number <= 10; $number++) {
    if ($number > 1) {
        usleep(300_000);
    }
    echo "line $number of 10\n";
    flush();
}
