import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig } from 'vite';

// The page is package data of the Python package, and is served under whatever address the studio has.
export default defineConfig({
  base: './',
  plugins: [svelte()],
  build: {
    outDir: '../vitrine/studio/page',
    emptyOutDir: true,
    target: 'es2022',
    assetsInlineLimit: 0, // the page's policy allows no inline script
    modulePreload: { polyfill: false },
  },
});
